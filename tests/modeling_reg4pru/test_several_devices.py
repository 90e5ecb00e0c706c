"""Layers on two devices, as `device_map="auto"` spreads them; fake tensors, so that no second device is needed."""

from functools import partial

import pytest
import torch
from accelerate.utils import send_to_device
from torch._subclasses.fake_tensor import FakeTensorMode

SECOND = ("layers.2", "layers.3", "layers.4", "layers.5", "layernorm", "upscale_block", "mask_head", "selectors.1")


def device_of(name: str) -> str:
    return "meta" if name.startswith(SECOND) else "cpu"


def move(module: torch.nn.Module, args: tuple, kwargs: dict, device: str) -> tuple[tuple, dict]:
    """What accelerate's hook does: a module is given its input where its weights are."""
    return send_to_device(args, device), send_to_device(kwargs, device)


@pytest.mark.parametrize(
    "variant", [{"pruning_layers": []}, {}, {"selector": "foreground_mlp", "train_pruning": "hard"}]
)
def test_a_forward_pass_crosses_devices(tiny_model, variant, monkeypatch):
    model = tiny_model(**variant, attn_implementation="eager").eval()
    lists = {
        f"{name}.{place}": module
        for name in ("layers", "selectors")
        for place, module in enumerate(getattr(model, name))
    }
    for name, module in {**dict(model.named_children()), **lists}.items():
        hook = partial(move, device=device_of(name))
        module.register_forward_pre_hook(hook, with_kwargs=True)
    # transformers caches the coordinates of patches for the whole process: no fake ones may get there.
    head_size = model.config.hidden_size // model.config.num_attention_heads
    monkeypatch.setattr(model.rope_embeddings, "forward", lambda _: (torch.ones(64, head_size),) * 2)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        state = {
            name: torch.empty(weight.shape, device=device_of(name))
            for name, weight in [*model.named_parameters(), *model.named_buffers()]
        }
        outputs = torch.func.functional_call(model, state, (torch.empty(2, 3, 64, 64),), {"keep_rates": 0.5})
        assert outputs.logits.shape == (2, 2, 16, 16)
