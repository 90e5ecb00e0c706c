"""`reg4pru predict`, as a user runs it."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets_fives.field_of_view import field_of_view
from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.tiled_inference import predict_image
from reg4pru import predict
from reg4pru.inference import prediction


@pytest.fixture
def folder(images, tmp_path):
    """Two images as PNG and JPEG, and a stray file, as in the published archive."""
    folder = tmp_path / "images"
    folder.mkdir()
    images[0]["image"].save(folder / "first.png")
    images[1]["image"].crop((0, 0, 100, 90)).save(folder / "second.JPG", format="JPEG")
    (folder / "Thumbs.db").write_bytes(b"\0\1")
    return folder


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """Runs the script with arguments that it must refuse, and returns what it says."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["reg4pru predict", *map(str, arguments)])
        monkeypatch.setattr(prediction, "predict_image", lambda *_, **__: pytest.fail("work has begun"))
        with pytest.raises(SystemExit) as stopped:
            predict.main()
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return run


def test_end_to_end(tiny_model, save_checkpoint, run_command, fails, folder, tmp_path):
    model, out = tiny_model(), tmp_path / "out"
    arguments = ("--model_name_or_path", save_checkpoint(model), "--images", folder, "--output_dir", out)

    finished = run_command("predict", *arguments, "--keep_rates", 0.5, "--threshold", 0.3)

    assert finished.returncode == 0, finished.stderr
    results = [f"{name}_{kind}_0.5.png" for name in ("first", "second") for kind in ("mask", "overlay", "probability")]
    assert sorted(path.name for path in out.glob("[!.]*")) == sorted(["predictions.csv", "predictions.json", *results])
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=None)
    for file in ("first.png", "second.JPG"):
        image = Image.open(folder / file)
        name = file.split(".")[0]
        probability = np.asarray(Image.open(out / f"{name}_probability_0.5.png"))
        mask = np.asarray(Image.open(out / f"{name}_mask_0.5.png"))
        overlay = np.asarray(Image.open(out / f"{name}_overlay_0.5.png"))

        expected = predict_image(model, processor, image, 0.5).probabilities[1].numpy()
        assert probability.dtype == np.uint16
        np.testing.assert_allclose(probability / 65535, expected, atol=1e-4)
        assert set(np.unique(mask)) == {0, 255}
        clear = np.abs(expected - 0.3) > 1e-4
        np.testing.assert_array_equal(mask[clear] == 255, expected[clear] > 0.3)
        inside = field_of_view(np.asarray(image))
        changed = (overlay != np.asarray(image)).any(axis=-1)
        np.testing.assert_array_equal(changed[inside], mask[inside] == 255)
        assert (overlay[~inside] == 255).all()

    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["file"]).name, row["keep_rate"]) for row in rows] == [
        ("first.png", "0.5"),
        ("second.JPG", "0.5"),
    ]
    assert all(0 <= float(row["vessel_fraction"]) <= 1 and int(row["num_tokens"]) > 0 for row in rows)

    # A second run has nothing left to do.
    before = (out / "first_mask_0.5.png").stat().st_mtime_ns
    again = run_command("predict", *arguments, "--keep_rates", 0.5, "--threshold", 0.3)
    assert "0 predictions; 2 were there already" in again.stderr
    assert (out / "first_mask_0.5.png").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("first_mask.png", []),
        ("second_overlay.png", []),
        ("first_stages_0.5.png", ["--stage_map", "--keep_rates", 1.0, 0.5]),
    ],
)
def test_files_of_others_are_not_replaced(fails, folder, tmp_path, name, more):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"another's")
    said = fails("--model_name_or_path", "unused", "--images", folder, "--output_dir", tmp_path / "out", *more)
    assert f"{name} exists" in said
    assert "--overwrite" in said


def test_overwrite_replaces_only_its_own_files(tiny_model, save_checkpoint, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "first_mask_0.9.png").write_bytes(b"old")
    arguments = ("--model_name_or_path", save_checkpoint(tiny_model()), "--images", folder / "first.png")
    arguments = (*arguments, "--output_dir", out, "--overwrite", "--keep_rates", 0.9)
    monkeypatch.setattr(sys, "argv", ["reg4pru predict", *map(str, arguments)])

    predict.main()

    assert (out / "notes.txt").read_text() == "mine"
    assert np.asarray(Image.open(out / "first_mask_0.9.png")).shape == (128, 128)


def test_what_keep_rates_share_is_done_once(tiny_model, save_checkpoint, folder, tmp_path, monkeypatch):
    calls = []

    def count(place, name):
        counted = getattr(place, name)

        def call(*arguments, **settings):
            calls.append(name)
            return counted(*arguments, **settings)

        monkeypatch.setattr(place, name, call)

    for name in ("read_image", "field_of_view", "predict_image"):
        count(prediction, name)
    count(Reg4PruImageProcessor, "cut_image")
    arguments = ["--model_name_or_path", save_checkpoint(tiny_model()), "--images", folder, "--stage_map"]
    arguments += ["--output_dir", tmp_path / "out", "--keep_rates", 1.0, 0.7, 0.5]
    assert predict.main([*map(str, arguments)]) == 0
    per_image = ["read_image", "field_of_view", "cut_image", *["predict_image"] * 3]
    assert calls == per_image * 2


def test_what_is_outside_the_field_of_view_can_be_skipped(tiny_model, save_checkpoint, fails, folder, tmp_path):
    model = tiny_model(allocation="image")
    checkpoint, file = save_checkpoint(model), folder / "first.png"
    arguments = ["--model_name_or_path", checkpoint, "--images", file, "--output_dir", tmp_path / "out"]
    assert predict.main([*map(str, arguments), "--keep_rates", "0.5", "--skip_outside"]) == 0
    image = Image.open(file)
    inside = field_of_view(np.asarray(image))
    processor = Reg4PruImageProcessor.from_pretrained(checkpoint)
    wanted = predict_image(model, processor, image, 0.5, pixel_mask=inside).probabilities[1].numpy()
    written = np.asarray(Image.open(tmp_path / "out" / "first_probability_0.5.png"))
    assert np.abs(written / 65535 - wanted).max() < 1e-4
    assert "--skip_outside is not given, and was True" in fails(*arguments, "--keep_rates", "0.3")


@pytest.mark.parametrize("abilities", [{"amx_bf16": True}, {}])
def test_fast_computes_in_bfloat16_where_the_machine_can(
    tiny_model, save_checkpoint, folder, tmp_path, monkeypatch, caplog, abilities
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    used = []

    def noting(model, *arguments, **settings):
        used.append(model.dtype)
        return predict_image(model, *arguments, **settings)

    monkeypatch.setattr(prediction, "predict_image", noting)
    arguments = ["--model_name_or_path", save_checkpoint(tiny_model()), "--images", folder / "first.png", "--fast"]
    assert predict.main([*map(str, arguments), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert used == [torch.bfloat16 if abilities else torch.float32]
    assert ("--fast changes nothing" in caplog.text) == (not abilities)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep_rates", "0.7", "0.7"], "twice"),
        (["--keep_rates", "2"], "2.0"),
        (["--threshold", "0"], "--threshold is 0.0"),
        (["--batch_size", "0"], "--batch_size is 0"),
        (["--images", "./missing.png"], "missing.png is no file"),
        (["--model_name_or_path", "./missing"], "./missing"),
        (["--fast", "--dtype", "float16"], "--fast chooses the data type, and --dtype is float16"),
        (["--fast", "--device", "nowhere"], "nowhere"),
    ],
)
def test_errors_before_any_work(tiny_model, save_checkpoint, fails, folder, tmp_path, arguments, message):
    common = ["--model_name_or_path", save_checkpoint(tiny_model()), "--images", folder]

    said = fails(*common, "--output_dir", tmp_path / "out", *arguments)

    assert message in said
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_named_at_the_end(tiny_model, save_checkpoint, run_command, folder, tmp_path):
    complete = (folder / "first.png").read_bytes()
    (folder / "broken.png").write_bytes(complete[: len(complete) // 2])
    (folder / "text.png").write_text("no image")
    Image.fromarray(np.full((40, 40), 30000, dtype=np.uint16)).save(folder / "deep.png")
    arguments = ("--model_name_or_path", save_checkpoint(tiny_model()), "--output_dir", tmp_path / "out")
    done = run_command("predict", *arguments, "--images", folder, "--stage_map", "--keep_rates", 1.0, 0.5)
    assert done.returncode == 1
    problems = [line for line in done.stderr.splitlines() if "Not predicted" in line]
    assert sorted({Path(line.split(": ")[1]).name for line in problems}) == ["broken.png", "text.png"]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"deep_{kind}_{rate}.png" for kind in ("mask", "stages") for rate in ("1.0", "0.5")} < written
    assert not any("unfinished" in name for name in written)


def test_folders_without_images(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    common = ("--model_name_or_path", "unused", "--output_dir", tmp_path / "out", "--images")
    assert "no folder or pattern with images" in fails(*common, tmp_path / "empty")


def test_results_never_land_among_the_images(fails, folder):
    common = ("--model_name_or_path", "unused", "--output_dir", folder, "--overwrite", "--images")

    assert "folder of the images" in fails(*common, folder)
