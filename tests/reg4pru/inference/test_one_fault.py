"""A fault in one image costs no other image, and the exit status says that there was one."""

import csv
import os

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_reg4pru.tiled_inference import ImagePrediction, predict_image
from reg4pru import predict
from reg4pru.inference import output_folder, prediction


def test_whatever_is_wrong_with_one_image(tiny_model, save_checkpoint, tmp_path, monkeypatch, capsys, caplog):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    faults = ["broken.png", "l" * 245 + ".png", os.fsdecode(b"M\xfcller.png"), "memory.png", "disk.png", "gone.png"]
    for place, name in enumerate(["a.png", *faults, "z.png"]):
        pixels = np.random.default_rng(place).integers(0, 255, (32, 32 + place, 3), dtype=np.uint8)
        try:
            Image.fromarray(pixels).save(folder / name)
        except OSError:
            pytest.skip("the file system takes UTF-8 only")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    (folder / "gone.png").unlink()
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")

    def out_of_memory(model, processor, tiles, *arguments, **settings):
        if tiles.frame.shape[1] == 32 + 4:
            raise RuntimeError("out of memory")
        return predict_image(model, processor, tiles, *arguments, **settings)

    save = output_folder.ResultFolder.save

    def full(results, name, pixels):
        if name == "disk_overlay.png":
            raise OSError(28, "No space left on device")
        save(results, name, pixels)

    monkeypatch.setattr(prediction, "predict_image", out_of_memory)
    monkeypatch.setattr(output_folder.ResultFolder, "save", full)
    flags = ["--model_name_or_path", save_checkpoint(tiny_model()), "--images", folder, "--output_dir", out]
    for count in ("2 predictions; 0 were", "0 predictions; 2 were"):
        caplog.clear()
        with caplog.at_level("INFO"):
            assert predict.main([*map(str, flags)]) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Not predicted")]
        assert len(said) == len(faults)
        for name in ("broken.png", "lll.png", "ller.png", "memory.png", "disk.png", "gone.png"):
            assert sum(name in line for line in said) == 1, name
        assert count in caplog.text
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert [row["mask"] for row in csv.DictReader(file)] == ["a_mask.png", "z_mask.png"]
    assert not list(out.glob("disk_*")), "no part of what was not predicted"


def test_one_image_of_a_thousand(tiny_model, save_checkpoint, tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for place in range(1000):
        Image.new("RGB", (8, 8), (place % 256, place // 256, 90)).save(folder / f"{place:03d}.png")
    (folder / "500.png").write_bytes((folder / "500.png").read_bytes()[:40])
    nothing = ImagePrediction(torch.zeros(2, 8, 8), stages=None, num_tiles=1, num_tokens=9)
    monkeypatch.setattr(prediction, "predict_image", lambda *_, **__: nothing)
    flags = ["--model_name_or_path", save_checkpoint(tiny_model()), "--images", folder, "--output_dir", out]
    assert predict.main([*map(str, flags)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Not predicted")]
    assert len(said) == 1
    assert "500.png" in said[0]
    assert len(list(out.glob("*_mask.png"))) == 999
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert len({row["file"] for row in csv.DictReader(file)}) == 999
