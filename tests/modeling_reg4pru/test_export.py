"""torch.export of the pruned model with a dynamic batch. For ONNX see tests/scripts/test_export_onnx.py."""

import pytest
import torch


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


@pytest.mark.parametrize("reactivation_layer", [3, 5])
@pytest.mark.parametrize("pool", ["active", "all"])
@torch.no_grad()
def test_exported_program_takes_any_batch(tiny_model, pool, reactivation_layer, tmp_path):
    model = tiny_model(selection_pool=pool, pruning_layers=[0, 2], reactivation_layer=reactivation_layer)
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(Logits(model).eval(), (torch.zeros(2, 3, 64, 64),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch_size in (1, 2, 5):
        images = torch.randn(batch_size, 3, 64, 64)
        torch.testing.assert_close(loaded(images), model(images).logits, atol=1e-6, rtol=1e-6)
    assert not torch.equal(loaded(images), model(images, keep_rates=1.0).logits)  # it is the pruned model
