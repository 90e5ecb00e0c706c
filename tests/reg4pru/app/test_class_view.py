"""The app with a model of more than two classes, without a browser."""

import base64
import json
from io import BytesIO

import gradio
import numpy as np
import pytest
from PIL import Image

from datasets_fives.metrics import ClassMetrics
from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.tiled_inference import predict_image
from reg4pru.app.comparison import Comparer, shown_overlays, shown_panels
from reg4pru.app.curve import agreement_figure
from reg4pru.app.downloads import Downloads
from reg4pru.app.html_tables import comparison_table, headline, measured_row
from reg4pru.app.mcp_tool import segmentation_tool
from reg4pru.app.page import Page
from reg4pru.inference.model_classes import model_classes
from reg4pru.maintenance import gallery
from reg4pru.reporting.class_colours import label_image


@pytest.fixture
def comparer(street_model):
    return Comparer(street_model, Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=None))


@pytest.fixture
def opened(comparer, street_images):
    return comparer.open("street", street_images[0]["image"], np.asarray(street_images[0]["mask"]))


def as_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_predictions_are_compared_by_mean_iou(comparer, opened):
    pruned = comparer.predict(opened.pixels, 0.3)
    expected = predict_image(comparer.model, comparer.processor, opened.pixels, 0.3).segmentation.numpy()
    np.testing.assert_array_equal(pruned.labels, expected)
    row = measured_row(opened, pruned, [0.3] * 3)
    names = model_classes(comparer.model.config)
    for prefix, reference in (("", opened.dense.labels), ("true_", opened.truth)):
        result = ClassMetrics(names).update(expected, reference)
        assert (row[f"{prefix}mean_iou"], row[f"{prefix}pixel_accuracy"]) == (
            result["mean_iou"], result["pixel_accuracy"],
        )  # fmt: skip
    table = comparison_table({"keep rate 0.3": row}, comparer.view)
    assert "mean IoU with unpruned" in table
    assert f"{row['true_mean_iou']:.3f}" in table
    assert "Dice" not in table + headline(row, comparer.view)
    assert agreement_figure([row, row], comparer.view.scores).std() > 5


def test_what_is_shown_is_of_the_whole_image(comparer, opened):
    pruned = comparer.predict(opened.pixels, 0.3)
    assert opened.inside.all()
    panels = shown_overlays(opened, pruned) | shown_panels(opened, pruned, 3)
    assert panels.keys() == {"unpruned", "pruned", "stages", "differences", "third"}
    changed = pruned.labels != opened.dense.labels
    assert changed.any()
    colours = {tuple(colour) for colour in panels["differences"][changed].tolist()}
    assert len(colours) == 1
    assert colours.isdisjoint(map(tuple, panels["differences"][~changed].tolist()))


def test_the_page_and_its_files(comparer, opened, tmp_path):
    page = str(Page(comparer, [], "", Downloads(tmp_path)).build().get_config_file())
    for text in ("Classes found", "building", "True label map", "Choose an image"):
        assert text in page
    for of_vessels in ("essel", "retina", "medical", "Or an example"):
        assert of_vessels not in page
    row = measured_row(opened, opened.dense, [1.0] * 3)
    files = Downloads(tmp_path).write("visitor", opened, opened.dense, [row])
    label_map = Image.open(files[0])
    assert label_map.mode == "P"
    np.testing.assert_array_equal(np.asarray(label_map), opened.dense.labels)
    assert "mean_iou" in (tmp_path / "visitor" / "street.csv").read_text()


def test_the_tool_gives_a_label_map(comparer, opened):
    tool = segmentation_tool(comparer)
    answer = json.loads(tool(base64.b64encode(as_png(Image.fromarray(opened.pixels))).decode(), 0.3))
    labels = np.asarray(Image.open(BytesIO(base64.b64decode(answer["label_map"]))))
    np.testing.assert_array_equal(labels, comparer.predict(opened.pixels, 0.3).labels)
    assert answer["class_fractions"]["car"] == pytest.approx(np.mean(labels == 4), abs=1e-6)
    assert 0 <= answer["mean_iou_with_unpruned"] <= 1
    with pytest.raises(gradio.Error, match="not an image"):
        tool(base64.b64encode(b"text").decode())


def test_the_tool_of_two_classes_with_names_of_their_own(tiny_model, opened):
    model = tiny_model(id2label={0: "background", 1: "polyp"})
    comparer = Comparer(model, Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=None))
    tool = segmentation_tool(comparer)
    assert "essel" not in tool.__doc__
    answer = json.loads(tool(base64.b64encode(as_png(Image.fromarray(opened.pixels))).decode()))
    mask = np.asarray(Image.open(BytesIO(base64.b64decode(answer["mask"]))))
    assert answer["class"] == "polyp"
    assert answer["class_fraction"] == pytest.approx(np.mean(mask == 255), abs=1e-6)


def test_a_true_label_map_is_read_with_its_ignored_pixels(comparer, opened):
    content = as_png(Image.fromarray(opened.truth))
    np.testing.assert_array_equal(comparer.view.open_truth(content, opened.truth.shape), opened.truth)
    predicted = as_png(label_image(opened.dense.labels, 5))
    np.testing.assert_array_equal(comparer.view.open_truth(predicted, opened.truth.shape), opened.dense.labels)
    with pytest.raises(ValueError, match=r"does not have these classes: .*the values 9"):
        comparer.view.open_truth(as_png(Image.fromarray(np.full((64, 96), 9, np.uint8))), (64, 96))
    with pytest.raises(ValueError, match="true label map has 96 × 64 pixels, the image 32 × 32"):
        comparer.view.open_truth(content, (32, 32))


def test_the_gallery_takes_an_image_of_classes(comparer, street_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "load_checkpoint", lambda *_, **__: (comparer.model, comparer.processor))
    flags = ["--model", "any", "--output", str(tmp_path / "gallery.png")]
    with pytest.raises(SystemExit):
        gallery.main(flags)
    assert "--image is not given, but the model finds sky, building, road" in capsys.readouterr().err
    street_images[0]["image"].save(tmp_path / "street.png")
    assert gallery.main([*flags, "--image", str(tmp_path / "street.png")]) == 0
    assert np.asarray(Image.open(tmp_path / "gallery.png").convert("L")).std() > 10
