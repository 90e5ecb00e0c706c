"""What the app measures and refuses, without a browser."""

import base64
import math
from io import BytesIO

import gradio
import numpy as np
import pytest
import torch
from PIL import Image

from datasets_fives.sources.synthetic import draw_image
from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.tiled_inference import predict_image
from reg4pru.app import __main__ as app
from reg4pru.app.comparison import Comparer
from reg4pru.app.html_tables import measured_row, speed_table
from reg4pru.app.mcp_tool import segmentation_tool
from reg4pru.app.page import readable_errors
from reg4pru.app.uploads import decode_base64, open_truth, open_upload
from reg4pru.maintenance import gallery


@pytest.fixture
def comparer(tiny_model):
    return Comparer(tiny_model(), Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=None))


@pytest.fixture
def image_and_mask():
    pixels, mask = draw_image(96, "N", np.random.SeedSequence(3))
    return Image.fromarray(pixels), mask > 0


def as_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_weights_that_are_no_numbers_give_a_sentence_and_no_mask(comparer, image_and_mask):
    image, _ = image_and_mask
    with torch.no_grad():
        comparer.model.layers[2].mlp.up_proj.weight[0, 0] = torch.nan
    encoded = base64.b64encode(as_png(image)).decode()
    with pytest.raises(gradio.Error, match=r"not finite .* in float32"):
        segmentation_tool(comparer)(encoded)
    with pytest.raises(gradio.Error, match=r"not finite .* in float32"), readable_errors():
        comparer.open("eye", image)


def test_a_port_in_use_is_said(tiny_model, save_checkpoint, monkeypatch, capsys):
    def refuse(*_):
        raise OSError("Cannot find empty port")

    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("reg4pru.app.serving.serve", refuse)
    with pytest.raises(SystemExit) as stopped:
        app.main(["--model", str(save_checkpoint(tiny_model())), "--server_port", "7901"])
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--server_port 7901: Cannot find empty port" in said


def test_settings_hold_for_one_call_only(comparer, image_and_mask):
    image, _ = image_and_mask
    config = comparer.model.config
    before = config.reactivation_layer, config.selection_pool
    opened = comparer.open("eye", image)
    changed = comparer.predict(opened.pixels, [0.5, 0.5, 0.4], reactivation_layer=5, selection_pool="all")
    assert (config.reactivation_layer, config.selection_pool) == before
    assert changed.token_counts[5] < opened.dense.token_counts[5], "nothing was put back before layer 5"
    with pytest.raises(ValueError, match="reactivation_layer"):
        comparer.predict(opened.pixels, 0.5, reactivation_layer=1)
    assert (config.reactivation_layer, config.selection_pool) == before
    again = comparer.predict(opened.pixels, 0.5)
    expected = predict_image(comparer.model, comparer.processor, image, 0.5)
    np.testing.assert_allclose(again.probability, expected.probabilities[1].numpy(), atol=1e-5)


def test_tiles_that_share_a_budget_are_shown_by_their_mean(comparer, image_and_mask):
    by_tile = comparer.predict(np.asarray(image_and_mask[0]), 0.5)
    comparer.model.config.allocation = "image"
    by_image = comparer.predict(np.asarray(image_and_mask[0]), 0.5)
    expected = predict_image(comparer.model, comparer.processor, image_and_mask[0], 0.5)
    np.testing.assert_allclose(by_image.probability, expected.probabilities[1].numpy(), atol=1e-5)
    assert sum(by_image.token_counts) == pytest.approx(expected.num_tokens / by_image.num_tiles, rel=0.02)
    assert by_image.token_counts == pytest.approx(by_tile.token_counts, rel=0.2)


def test_rows_compare_with_the_unpruned_prediction_and_the_truth(comparer, image_and_mask):
    image, mask = image_and_mask
    opened = comparer.open("eye", image)
    row = measured_row(opened, opened.dense, [1.0] * 3)
    assert (row["dice"], row["speed_up"], row["tokens"], row["keep_rate"]) == (1.0, 1.0, 100.0, "1.0")
    assert math.isnan(row["true_dice"])
    opened.truth = mask
    found, inside = opened.dense.labels, opened.inside
    dice = 2 * (found & mask & inside).sum() / ((found & inside).sum() + (mask & inside).sum())
    assert measured_row(opened, opened.dense, [0.7, 0.5, 0.5])["true_dice"] == pytest.approx(dice)
    assert measured_row(opened, opened.dense, [0.7, 0.5, 0.5])["keep_rate"] == "0.7 / 0.5 / 0.5"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "is not an image"),
        (as_png(Image.new("1", (6000, 6000))), "6000 × 6000 pixels, more than the 25"),
        (as_png(Image.new("RGB", (8, 8))), "8 × 8 pixels"),
        (as_png(Image.effect_noise((64, 64), 50))[:2000], "damaged or incomplete"),
    ],
)
def test_what_is_refused(content, message):
    with pytest.raises(ValueError, match=message) as refused:
        open_upload(content)
    assert "0x" not in str(refused.value)


def test_masks_and_texts_that_do_not_fit(image_and_mask):
    _, mask = image_and_mask
    content = as_png(Image.fromarray(mask))
    np.testing.assert_array_equal(open_truth(content, (96, 96)), mask)
    with pytest.raises(ValueError, match="96 × 96 pixels, the image 64 × 32"):
        open_truth(content, (32, 64))
    assert decode_base64("data:image/png;base64," + base64.b64encode(content).decode()) == content
    with pytest.raises(ValueError, match="not base64"):
        decode_base64("/etc/passwd")


def test_the_gallery_of_a_checkpoint(comparer, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "load_checkpoint", lambda *_, **__: (comparer.model, comparer.processor))
    monkeypatch.setattr(gallery, "_SIDE", 96)
    assert gallery.main(["--model", "any", "--output", str(tmp_path / "app" / "gallery.png")]) == 0
    assert np.asarray(Image.open(tmp_path / "app" / "gallery.png").convert("L")).std() > 10


def test_what_was_tuned_is_a_table(speed):
    table = speed_table(speed)
    assert table.count("<tr>") == 1 + 2
    assert "<td>1.0 / 0.7 / 0.5</td><td>L−2</td><td>all</td><td>image</td><td>0.875</td>" in table
    assert "Slow &amp; Steady, 2 threads" in table


def test_the_page_shows_what_was_tuned(comparer, speed, tmp_path):
    pytest.importorskip("gradio")
    from reg4pru.app.downloads import Downloads
    from reg4pru.app.page import Page

    def page(measured):
        return str(Page(comparer, [], "", Downloads(tmp_path), measured).build().get_config_file())

    assert "Slow &amp; Steady" in page(speed)
    assert "for a budget of time" not in page(None)
