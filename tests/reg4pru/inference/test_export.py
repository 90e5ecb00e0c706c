"""The ONNX file that a user gets, run by onnxruntime."""

import json

import pytest
import torch

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

import onnx
import onnxruntime

from reg4pru.export import main
from reg4pru.inference.onnx_export import (
    compare,
    export_checked,
    export_onnx,
    export_program,
    run_onnx,
    tiles_in_a_row,
)

from ...variants import VARIANTS, give_corrections_weights

TOLERANCE = 1e-4  # of logits up to about 10; onnxruntime fuses and sums in another order


@pytest.mark.slow
def test_command(run_command, save_checkpoint, tiny_model, tmp_path):
    model = tiny_model(selection_pool="all", pruning_layers=[0, 2], reactivation_layer=3)
    checkpoint = save_checkpoint(model)
    path = tmp_path / "onnx" / "model.onnx"
    flags = ("--model_name_or_path", checkpoint, "--output", path, "--keep_rates", 0.5)
    done = run_command("export", *flags)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime differs" in done.stderr

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch_size in (1, 2, 5):
        images = torch.randn(batch_size, 3, 64, 64)
        (logits,) = session.run(None, {"pixel_values": images.numpy()})
        wanted = model(images, keep_rates=0.5).logits.detach()
        torch.testing.assert_close(torch.from_numpy(logits), wanted, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(wanted, model(images, keep_rates=1.0).logits, atol=10 * TOLERANCE)

    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert metadata["keep_rates"] == [0.5, 0.5]
    assert metadata["image_size"] == [64, 64]

    before = path.read_bytes()
    refused = run_command("export", *flags)
    assert refused.returncode != 0
    assert "--overwrite" in refused.stderr
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's exporter, of torch's own pytree
def test_default_recipe(tiny_model, tmp_path):
    model = tiny_model(num_hidden_layers=4, pruning_layers=[0, 1], reactivation_layer=2, **VARIANTS["default"])
    give_corrections_weights(model)
    export_onnx(model, (64, 64), tmp_path / "model.onnx")
    largest, share_off = compare(model, (64, 64), tmp_path / "model.onnx")
    assert largest < TOLERANCE
    assert share_off == 0
    model.set_keep_rates(0.3)  # another model than the file holds
    assert compare(model, (64, 64), tmp_path / "model.onnx")[1] > 0.05


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_an_export_that_is_wrong_is_no_export(tiny_model, tmp_path, monkeypatch):
    def another(model, image_size, path):
        other = tiny_model(num_hidden_layers=4, pruning_layers=[0], reactivation_layer=2)
        export_onnx(other, image_size, path)

    model = tiny_model(num_hidden_layers=4, pruning_layers=[0], reactivation_layer=2, keep_rates=0.3)
    monkeypatch.setattr("reg4pru.inference.onnx_export.export_onnx", another)
    path = tmp_path / "new" / "model.onnx"
    with pytest.raises(ValueError, match=r"The export is wrong and was not kept: \d+% of its logits"):
        export_checked(model, (64, 64), path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "nowhere"], "No checkpoint could be loaded from 'nowhere'"),
        (["--keep_rates", "1.5"], "keep_rates"),
        (["--image_size", "33"], "both sides must be multiples of the patch size 8"),
        (["--image_size", "0"], "0 x 0 pixels: both sides must be at least 1"),
    ],
)
def test_what_cannot_be_exported_is_named_in_a_line(save_checkpoint, tiny_model, tmp_path, capsys, flags, message):
    path = tmp_path / "new" / "model.onnx"
    with pytest.raises(SystemExit):
        main(["--model_name_or_path", str(save_checkpoint(tiny_model())), "--output", str(path), *flags])
    assert message in capsys.readouterr().err
    assert not path.parent.exists()


def test_chance_cannot_be_exported(run_command, save_checkpoint, tiny_model, tmp_path):
    checkpoint = save_checkpoint(tiny_model(selector="random", train_pruning="none", keep_rates=0.5))
    path = tmp_path / "model.onnx"
    refused = run_command("export", "--model_name_or_path", checkpoint, "--output", path)
    assert refused.returncode != 0
    assert "selects tokens at random (`selector` is 'random')" in refused.stderr
    assert not path.exists()


def test_tiles_that_share_a_budget_are_exported_as_such_on_demand_only(
    save_checkpoint, tiny_model, tmp_path, capsys, monkeypatch
):
    exported = "reg4pru.inference.onnx_export.export_onnx"
    monkeypatch.setattr(exported, lambda model, *_: pytest.fail(model.config.allocation))
    checkpoint = save_checkpoint(tiny_model(allocation="image", blend_share_weight=2.0))
    flags = ["--model_name_or_path", str(checkpoint), "--output", str(tmp_path / "model.onnx")]
    with pytest.raises(SystemExit):
        main(flags)
    assert "The tiles of an image share one budget" in capsys.readouterr().err
    with pytest.raises(pytest.fail.Exception, match="tile"):
        main([*flags, "--allocation", "tile"])


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_a_graph_that_weighs_tiles_is_told_where_they_lie(tiny_model, tmp_path):
    fields = {"pruning_layers": [0, 1], "reactivation_layer": 3, "keep_rates": 0.5, "blend_share_weight": 2.0}
    model = tiny_model(num_hidden_layers=4, **fields)
    assert export_checked(model, (64, 64), tmp_path / "model.onnx") < TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images, beside, alone = torch.randn(2, 3, 64, 64), tiles_in_a_row(2, 64), tiles_in_a_row(1, 64).expand(2, -1)
    logits = run_onnx(session, images, alone)
    torch.testing.assert_close(logits, model(images).logits.detach(), atol=TOLERANCE, rtol=0)
    assert not torch.allclose(logits, run_onnx(session, images, beside), atol=10 * TOLERANCE)


@pytest.mark.parametrize(
    ("pool", "drift_correction", "reactivation_layer"), [("active", False, 3), ("active", True, 5), ("all", True, 3)]
)
@torch.no_grad()
def test_exported_program_takes_any_batch(tiny_model, pool, drift_correction, reactivation_layer, tmp_path):
    fields = {"selection_pool": pool, "drift_correction": drift_correction, "train_pruning": "hard"}
    model = tiny_model(**fields, pruning_layers=[0, 2], reactivation_layer=reactivation_layer)
    give_corrections_weights(model)
    torch.export.save(export_program(model, (64, 64)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch_size in (1, 2, 5):
        images = torch.randn(batch_size, 3, 64, 64)
        torch.testing.assert_close(loaded(images), model(images).logits, atol=1e-6, rtol=1e-6)
    assert not torch.equal(loaded(images), model(images, keep_rates=1.0).logits)  # it is the pruned model
