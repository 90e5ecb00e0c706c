"""The training part of the benchmark: a step of every variant, and policy attention against its explicit form."""

import bisect
import copy
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import psutil
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from modeling_reg4pru.policy_attention import policy_attention
from modeling_reg4pru.token_bank import routing_window_range
from modeling_reg4pru.token_selectors import SELECTOR_CLASSES

from .baselines import dense_model, explicit_policy_attention, use_explicit_attention, variant
from .timing import interleaved_seconds, peak_memory

logger = logging.getLogger("benchmark")

# Name → fields of the configuration. All ratios are relative to "dense".
VARIANTS = {
    "dense": {"train_pruning": "none", "routing": False},
    "soft": {"train_pruning": "soft", "routing": False},
    "soft + routing (Reg4Pru)": {"train_pruning": "soft", "routing": True},
    "hard": {"train_pruning": "hard", "routing": False},
    "hard + routing": {"train_pruning": "hard", "routing": True},
}
EXPLICIT = "soft, explicit N × N softmax"
TRANSFORMERS = "dense (transformers)"
MATRICES_PER_LAYER = 3  # N × N matrices that the explicit softmax keeps for its gradient


@dataclass
class TimedStep:
    """A training step, and its model if that routes, so that every round can set the routing window."""

    step: Callable[[], object]
    routed: Reg4PruForSemanticSegmentation | None = None


def typical_windows(config: Reg4PruConfig, count: int) -> list[list[int]]:
    """
    Routing windows at evenly spaced quantiles of their length, since a few random draws would not be representative;
    the window of the configuration if it has one.
    """
    if config.routing_window is not None:
        return [list(config.routing_window)] * count
    last = config.num_hidden_layers - 2
    earliest, latest = routing_window_range(config.num_hidden_layers)
    chances = {
        (start, end): 1 / (last - start) for start in range(earliest, latest + 1) for end in range(start + 1, last + 1)
    }
    by_length = sorted(chances, key=lambda window: (window[1] - window[0], window))
    passed = list(itertools.accumulate(chances[window] for window in by_length))
    places = [bisect.bisect_left(passed, (index + 0.5) / count * passed[-1]) for index in range(count)]
    return [list(by_length[place]) for place in places]


def training_variants(
    model: Reg4PruForSemanticSegmentation,
    image_size: int,
    batch_size: int,
    dtype: torch.dtype,
    compile_mode: str | None,
) -> tuple[dict[str, TimedStep], dict[str, str]]:
    """
    Steps (forward, backward, AdamW) of every variant on random images. Weights, gradients and moments exist before the
    first step, so that the memory of a step is what it needs beside them. All variants predict at every query layer
    with masked attention, as EoMT is trained.

    Returns:
        `tuple`: the step of every variant, and for each that cannot be measured the reason, both by name.
    """
    device = model.device
    pixel_values = torch.randn(batch_size, model.config.num_channels, image_size, image_size, device=device)
    labels = (torch.rand(batch_size, image_size, image_size, device=device) < 0.1).long()
    model.attn_mask_probs.fill_(1)
    model.config.masked_attention = True

    dense = dense_model(model, image_size).to(device).train()
    dense.attn_mask_probs.fill_(1)
    mask_labels = list(labels[:, None].float())
    class_labels = [torch.ones(1, dtype=torch.long, device=device)] * batch_size

    def compute_loss(forward: torch.nn.Module) -> torch.Tensor:
        return forward(pixel_values, labels=labels).loss

    variants = {
        TRANSFORMERS: TimedStep(
            make_step(
                dense,
                dtype,
                compile_mode,
                lambda forward: forward(pixel_values, mask_labels=mask_labels, class_labels=class_labels).loss,
            )
        )
    }
    skipped = {}
    for name, fields in VARIANTS.items():
        if fields["train_pruning"] == "soft" and SELECTOR_CLASSES[model.config.selector].learns_from != "policy":
            skipped[name] = f"the selector {model.config.selector!r} does not learn through a soft policy"
            continue
        variant = _variant_model(model, name)
        variant.selectors.requires_grad_(variant.config.selectors_learn)
        step = make_step(variant, dtype, compile_mode, compute_loss)
        variants[name] = TimedStep(step, variant if fields["routing"] else None)

    num_tokens = (image_size // model.config.patch_size) ** 2 + model.config.num_prefix_tokens
    needed = _explicit_bytes(model.config, num_tokens, batch_size, dtype)
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if "soft" not in variants:
        skipped[EXPLICIT] = skipped["soft"]
    elif needed > 0.7 * available:  # the rest of the step needs memory, too
        skipped[EXPLICIT] = (
            f"needs about {needed / 2**30:.0f} GiB of {available / 2**30:.0f} GiB: choose a smaller image_size"
        )
    else:
        explicit = _variant_model(use_explicit_attention(copy.deepcopy(model)), "soft")
        variants[EXPLICIT] = TimedStep(make_step(explicit, dtype, compile_mode, compute_loss))
    for name, reason in skipped.items():
        logger.warning("Not measured: %s, %s.", name, reason)
    return variants, skipped


def _variant_model(model: Reg4PruForSemanticSegmentation, name: str) -> Reg4PruForSemanticSegmentation:
    fields = VARIANTS[name]
    corrected = model.config.drift_correction and fields["train_pruning"] == "hard"  # no other training can learn it
    return variant(model, **fields, drift_correction=corrected).train()


def _explicit_bytes(config: Reg4PruConfig, num_tokens: int, batch_size: int, dtype: torch.dtype) -> int:
    gated_layers = config.num_hidden_layers - config.pruning_layers[0]
    matrix = batch_size * config.num_attention_heads * num_tokens**2 * dtype.itemsize
    return MATRICES_PER_LAYER * gated_layers * matrix


def make_step(
    model: torch.nn.Module,
    dtype: torch.dtype,
    compile_mode: str | None,
    compute_loss: Callable[[torch.nn.Module], torch.Tensor],
) -> Callable[[], None]:
    """
    A training step to time: forward, backward, AdamW. Gradients and moments exist before the first step.

    Args:
        model (`torch.nn.Module`): In training mode; its weights hardly change (learning rate 1e-6).
        dtype (`torch.dtype`): Of autocast; float32 switches it off.
        compile_mode (`str`, *optional*): Of torch.compile; `None`: not compiled.
        compute_loss (`Callable`): From the model, or its compiled form, to the loss of a step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    forward = model if compile_mode is None else torch.compile(model, mode=compile_mode)

    def step() -> None:
        with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = compute_loss(forward)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def compare_policy_attention(
    config: Reg4PruConfig, num_tokens: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> dict:
    """
    One attention layer with a policy, forward and backward, for one image: the extra channel in a fused kernel against
    the explicit softmax.

    Returns:
        `dict`: `extra_channel` and `explicit`, each with the `seconds` of every round and the `peak_memory` in bytes;
        `num_tokens`; and `output_difference`, the largest of the outputs.
    """
    head_dim = config.hidden_size // config.num_attention_heads
    shape = (1, config.num_attention_heads, num_tokens, head_dim)
    scaling = head_dim**-0.5
    query, key, value = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    policy = (torch.rand(1, num_tokens, device=device) < 0.5).to(dtype).requires_grad_()
    inputs = (query, key, value, policy)
    module = SimpleNamespace(scaling=scaling, is_causal=False, training=True)

    def extra_channel() -> torch.Tensor:
        return policy_attention(sdpa_attention_forward, module, *inputs)[0].transpose(1, 2)

    def explicit() -> torch.Tensor:
        return explicit_policy_attention(*inputs, scaling)

    def both_ways(forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            forward().sum().backward()
            for tensor in inputs:
                tensor.grad.zero_()

        return call

    with torch.no_grad():
        difference = (extra_channel() - explicit()).abs().max().item()
    calls = {"extra_channel": both_ways(extra_channel), "explicit": both_ways(explicit)}
    for call in calls.values():
        call()  # fills caches
    result = {name: {"peak_memory": peak_memory(call, device)} for name, call in calls.items()}
    for name, seconds in interleaved_seconds(calls, device, rounds).items():
        result[name]["seconds"] = seconds
    return {"num_tokens": num_tokens, "output_difference": difference, **result}
