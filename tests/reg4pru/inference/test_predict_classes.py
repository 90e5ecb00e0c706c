"""`reg4pru predict` with models of other classes than vessels."""

import csv

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image

from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.label_maps import read_label_map
from modeling_reg4pru.tiled_inference import predict_image
from reg4pru import predict
from reg4pru.inference.model_classes import model_classes
from reg4pru.inference.result_table import read_table
from reg4pru.reporting.class_colours import class_colours, label_image, legend_strip


@pytest.fixture
def folder(street_images, tmp_path):
    """The street images as files."""
    (tmp_path / "images").mkdir()
    for row in street_images:
        row["image"].save(tmp_path / "images" / f"{row['name'].replace('/', '_')}.png")
    return tmp_path / "images"


@pytest.fixture
def run(folder, save_checkpoint, tmp_path, monkeypatch):
    """Predicts the street images with a model, into `tmp_path / "out"`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def predicted(model, *flags: object) -> int:
        common = ["--model_name_or_path", save_checkpoint(model), "--images", folder, "--output_dir", tmp_path / "out"]
        return predict.main([*map(str, common), *map(str, flags)])

    return predicted


def table(folder) -> list[dict[str, str]]:
    with (folder / "out/predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_label_maps_overlays_and_table(run, street_model, folder, tmp_path):
    assert run(street_model, "--keep_rates", 1.0, 0.5, "--stage_map") == 0

    names, rows = model_classes(street_model.config), table(tmp_path)
    assert list(rows[0]) == ["file", "keep_rate", "mask", *(f"pixels_{name}" for name in names), "num_tokens",
                             "seconds", "fingerprint"]  # fmt: skip
    processor, seen = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=None), set()
    for row in rows:
        image = Image.open(row["file"])
        expected = predict_image(street_model, processor, image, float(row["keep_rate"])).segmentation.numpy()
        seen |= set(np.unique(expected).tolist())
        label_map = Image.open(tmp_path / "out" / row["mask"])
        assert label_map.mode == "P"
        np.testing.assert_array_equal(np.asarray(label_map), expected)
        np.testing.assert_array_equal(np.asarray(label_map.convert("RGB")), class_colours(len(names))[expected])
        np.testing.assert_array_equal(read_label_map(label_map, len(names)), expected)
        assert [int(row[f"pixels_{name}"]) for name in names] == np.bincount(expected.ravel(), minlength=5).tolist()
        overlay = np.asarray(Image.open(tmp_path / "out" / row["mask"].replace("mask", "overlay")))
        assert overlay.shape[1] == image.width
        assert overlay.shape[0] > image.height, "a legend"
        opacity = 0.55  # colours shine through everywhere: there is no field of view
        blend = (1 - opacity) * np.asarray(image) + opacity * class_colours(5)[expected]
        np.testing.assert_allclose(overlay[: image.height], blend, atol=1)
    assert len(seen) > 1
    kinds = {path.name.split("_")[2] for path in (tmp_path / "out").glob("*.png")}
    assert kinds == {"mask", "overlay", "stages"}

    stamp = (tmp_path / "out" / rows[0]["mask"]).stat().st_mtime_ns
    assert run(street_model, "--keep_rates", 1.0, 0.5, "--stage_map") == 0
    assert (tmp_path / "out" / rows[0]["mask"]).stat().st_mtime_ns == stamp
    assert table(tmp_path) == rows


def test_a_data_set_of_label_maps(run, street_model, tmp_path):
    assert run(street_model, "--parquet") == 0
    rows = load_dataset(str(tmp_path / "out/dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert "probability" not in rows.features
    for row, written in zip(rows, table(tmp_path), strict=True):
        np.testing.assert_array_equal(
            np.asarray(row["mask"]), np.asarray(Image.open(tmp_path / "out" / written["mask"]))
        )
        assert row["pixels_car"] == int(written["pixels_car"])
    card = (tmp_path / "out/dataset/README.md").read_text()
    assert "Classes: 0 sky, 1 building, 2 road, 3 tree, 4 car." in card
    assert "retina" not in card
    assert "medical" not in card


def test_two_classes_with_names_of_their_own_have_no_field_of_view(run, tiny_model, tmp_path):
    model = tiny_model(id2label={0: "background", 1: "polyp"})
    assert run(model, "--threshold", 0.4, "--parquet") == 0
    for row in table(tmp_path):
        mask = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
        assert int(row["pixels_polyp"]) == np.count_nonzero(mask == 255) == mask.size - int(row["pixels_background"])
        overlay = np.asarray(Image.open(tmp_path / "out" / row["mask"].replace("mask", "overlay")))
        image = np.asarray(Image.open(row["file"]))
        np.testing.assert_array_equal(overlay[mask == 0], image[mask == 0])
    rows = load_dataset(str(tmp_path / "out/dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"mask", "probability", "pixels_polyp"} < set(rows.features)


def test_another_model_of_other_classes_is_refused_and_replaces_all(run, street_model, tiny_model, tmp_path, capsys):
    assert run(tiny_model()) == 0
    with pytest.raises(SystemExit, match="2"):
        run(street_model)
    assert "holds predictions made otherwise" in capsys.readouterr().err
    assert run(street_model, "--overwrite") == 0
    assert "pixels_car" in table(tmp_path)[0]
    assert not list((tmp_path / "out").glob("*_probability.png"))


def test_what_only_two_classes_have_is_refused(run, street_model, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(street_model, "--threshold", 0.3)
    assert "--threshold is 0.3, but the model tells 5 classes apart" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(street_model, "--skip_outside")
    assert "--skip_outside finds the circular field of view of fundus images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_table_that_was_cut_anywhere_is_gone_on_with(run, street_model, tmp_path):
    assert run(street_model) == 0
    path = tmp_path / "out/predictions.csv"
    whole, (complete, _) = path.read_bytes(), read_table(path)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        rows, clean = read_table(path)
        assert rows == complete[: len(rows)]
        assert len(rows) >= whole[:end].count(b"\n") - 1
        assert clean == whole[:end].endswith(b"\n")


def test_two_classes_of_many_queries_are_those_of_the_highest_scores(run, tiny_model, tmp_path):
    model = tiny_model(num_labels=2, num_queries=6, id2label={0: "land", 1: "water"})
    for weight in (model.class_predictor.weight, model.query.weight):
        torch.nn.init.normal_(weight, std=3)
    assert run(model, "--keep_rates", 1.0) == 0
    processor, seen = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=None), set()
    for row in table(tmp_path):
        wanted = predict_image(model, processor, row["file"], 1.0)
        assert (wanted.probabilities.sum(dim=0) - 1).abs().max() > 0.01
        mask = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
        np.testing.assert_array_equal(mask > 0, wanted.segmentation.numpy() == 1)
        seen |= set(wanted.segmentation.unique().tolist())
    assert seen == {0, 1}


def test_legends_have_all_letters_and_end_inside():
    colours = class_colours(2)
    for letter in "ßäñЖ":  # a letter that a font lacks looks like one that does not exist
        missing = legend_strip(["\u0378", "a"], colours, 400)
        assert not np.array_equal(legend_strip([letter, "a"], colours, 400), missing)
    long = legend_strip(["an object of a long name", "b"], colours, 80)
    assert (long[:, -4:] == 255).all()
    assert not np.array_equal(long, legend_strip(["another object", "b"], colours, 80))


def test_colours_of_classes():
    assert len(np.unique(class_colours(20), axis=0)) == 20
    np.testing.assert_array_equal(class_colours(7), class_colours(20)[:7])
    many = class_colours(256)
    assert len(np.unique(many, axis=0)) == 256
    voc = {1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}  # aeroplane, cat, person, tv
    assert {index: tuple(many[index].tolist()) for index in voc} == voc
    for count in (20, 256):  # a label map of one class reads as it was written, too
        for index in range(1, count):
            assert np.asarray(read_label_map(label_image(np.full((1, 1), index), count))).item() == index
    with pytest.raises(ValueError, match="There are 257 classes"):
        class_colours(257)
