"""Only what was measured with the weights that are pushed is published with them."""

import json
import shutil

import pytest

from modeling_reg4pru.speed_budget import fingerprint_weights
from reg4pru import benchmark, evaluate, push
from reg4pru.hub.measured import check_measured, stage_measured


@pytest.fixture
def checkpoint(tiny_model, save_checkpoint):
    return save_checkpoint(tiny_model())


def measured(checkpoint, **others) -> dict:
    return {"weights": fingerprint_weights(checkpoint), "settings": {"model_name_or_path": "runs/best"}, **others}


@pytest.mark.parametrize(("flag", "results"), [("metrics", "results"), ("benchmark", "inference")])
def test_other_weights_and_unknown_weights_are_refused(checkpoint, tiny_model, flag, results):
    content = measured(checkpoint, **{results: {}})
    check_measured(flag, "file.json", content, checkpoint)
    for early in ({}, {"weights": 1234}):  # an early benchmark.json has the number of the weights
        with pytest.raises(ValueError, match=rf"--{flag} is file.json, which does not record the weights .* reg4pru"):
            check_measured(flag, "file.json", {**content, "weights": None, **early}, checkpoint)
    for other in ({}, [], "text"):
        with pytest.raises(ValueError, match=rf"--{flag} is file.json, which was not written by reg4pru"):
            check_measured(flag, "file.json", other, checkpoint)
    tiny_model(initializer_range=0.1).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"measured with other weights .* with runs/best of fingerprint"):
        check_measured(flag, "file.json", content, checkpoint)


def test_a_benchmark_of_random_weights_belongs_to_no_checkpoint(checkpoint):
    content = {"weights": None, "arguments": {"model_name_or_path": None}, "inference": []}
    with pytest.raises(ValueError, match="random weights: these numbers belong to no checkpoint"):
        check_measured("benchmark", "benchmark.json", content, checkpoint)


@pytest.mark.parametrize("changed", [{"selector": "random"}, {"selection_pool": "all"}])
def test_what_was_measured_with_the_model_changed_is_not_of_the_model(checkpoint, changed):
    content = measured(checkpoint, results={})
    content["settings"] |= {"selector": None, "selection_pool": "active"}
    check_measured("metrics", "metrics.json", content, checkpoint)
    content["settings"] |= changed
    (name,) = changed
    with pytest.raises(ValueError, match=f"measured with --{name} {changed[name]}"):
        check_measured("metrics", "metrics.json", content, checkpoint)


def test_what_is_pushed_names_the_weights_beside_it(checkpoint, tmp_path):
    path, folder = tmp_path / "metrics.json", tmp_path / "pushed"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"the same, saved by another version")
    path.write_text(json.dumps(measured(checkpoint, results={})))
    before, content = path.read_bytes(), json.loads(path.read_text())
    stage_measured(path, content, folder)
    pushed = json.loads((folder / "results" / "metrics.json").read_text())
    assert pushed["weights"] == content["weights"] == fingerprint_weights(folder) != fingerprint_weights(checkpoint)
    assert path.read_bytes() == before


def test_evaluate_benchmark_and_push_agree(tiny_model, save_checkpoint, tmp_path, capsys):
    own = save_checkpoint(tiny_model())
    other = shutil.copytree(own, tmp_path / "other")
    tiny_model(initializer_range=0.1).save_pretrained(other)
    name = ["--model_name_or_path", str(own)]
    measure = ["--synthetic_counts", "1", "1", "1", "--keep_rates", "1.0", "--device", "cpu"]
    evaluate.main([*name, *measure, "--output_dir", str(tmp_path / "evaluated")])
    speed = ["--image_size", "64", "--keep_rates", "0.5", "--reactivation_layers", "4", "--rounds", "1"]
    benchmark.main(
        [*name, *speed, "--min_seconds", "0.01", "--device", "cpu", "--output_dir", str(tmp_path / "speed")]
    )
    files = {"metrics": tmp_path / "evaluated" / "metrics.json", "benchmark": tmp_path / "speed" / "benchmark.json"}

    def write(checkpoint, flags, folder):
        results = [argument for flag in flags for argument in (f"--{flag}", str(files[flag]))]
        pushed = ["--model_name_or_path", str(checkpoint), "--hub_model_id", "me/tiny", *results]
        push.main([*pushed, "--output_dir", str(tmp_path / folder)])

    write(own, files, "pushed")
    card = (tmp_path / "pushed" / "README.md").read_text(encoding="utf-8")
    weights = fingerprint_weights(tmp_path / "pushed")
    for flag, path in files.items():
        assert json.loads((tmp_path / "pushed" / "results" / path.name).read_text())["weights"] == weights
        assert f"`results/{path.name}`" in card
        with pytest.raises(SystemExit) as stopped:
            write(other, [flag], "refused")
        assert stopped.value.code == 2
        assert "measured with other weights" in capsys.readouterr().err
    assert card.count(f"of weights with the fingerprint `{weights}`") == 2
    assert not (tmp_path / "refused").exists()
