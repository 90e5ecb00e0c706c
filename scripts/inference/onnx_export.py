"""A pruned model as an exported program and as ONNX, compared with the model itself."""

import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from modeling_reg4pru.configuration_reg4pru import expand_keep_rates
from modeling_reg4pru.token_selectors import RandomSelector

# Of the largest logit. onnxruntime fuses and sums in another order.
TOLERANCE = 1e-3
# Share of the logits that may differ by more: of two tokens with all but equal scores it may keep the other one.
MAX_SHARE_OFF = 0.01


class LogitsOnly(nn.Module):
    """The model as a function of images, and of where they lie as tiles, to logits: what graph formats know."""

    def __init__(self, model: Reg4PruForSemanticSegmentation):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, patch_offsets: torch.Tensor | None = None) -> torch.Tensor:
        return self.model(pixel_values, patch_offsets=patch_offsets).logits


def weighs_tiles(config: Reg4PruConfig, image_size: tuple[int, int]) -> bool:
    """Whether a stage asks where tiles lie (`blend_share_weight`); a graph then has the input `patch_offsets`."""
    pruned = min(expand_keep_rates(config.keep_rates, config.num_stages), default=1.0) < 1
    return pruned and config.blend_share_weight > 0 and image_size[0] == image_size[1]  # tiles are squares


def tiles_in_a_row(num_tiles: int, side: int) -> torch.Tensor:
    """`patch_offsets` of tiles that share a quarter with their neighbours; of one, those of an image of its size."""
    overlap = side // 4
    width = num_tiles * (side - overlap) + overlap
    rows = [(0, 0, place * (side - overlap), side, side, width, side, width, overlap) for place in range(num_tiles)]
    return torch.tensor(rows)


def export_program(model: Reg4PruForSemanticSegmentation, image_size: tuple[int, int]) -> torch.export.ExportedProgram:
    """
    The pruned model, with its present keep rates, as a graph with a dynamic batch.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model; it is exported for inference.
        image_size (`tuple[int, int]`): Height and width of the images, multiples of the patch size.
    """
    example = torch.zeros(2, model.config.num_channels, *image_size, device=model.device, dtype=model.dtype)
    return _program(LogitsOnly(model).eval(), example, weighs_tiles(model.config, image_size))


def _program(module: nn.Module, example: torch.Tensor, takes_offsets: bool) -> torch.export.ExportedProgram:
    """A graph with a dynamic batch; the example holds two images: a batch of one would be taken for a constant."""
    inputs = {"pixel_values": example}
    if takes_offsets:
        inputs["patch_offsets"] = tiles_in_a_row(2, example.shape[-1]).to(example.device)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(
            module, tuple(inputs.values()), dynamic_shapes={name: {0: batch} for name in inputs}
        )


def export_module(
    module: nn.Module, num_channels: int, image_size: tuple[int, int], takes_offsets: bool
) -> torch.onnx.ONNXProgram:
    """
    Any module of `pixel_values` and `patch_offsets` to logits, in `float32` on the CPU, as ONNX with a dynamic batch;
    with the second input only if it `takes_offsets`.
    """
    return _onnx_program(_program(module.eval(), torch.zeros(2, num_channels, *image_size), takes_offsets))


def _onnx_program(program: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    names = [name for name in ("pixel_values", "patch_offsets") if name in program.graph_signature.user_inputs]
    return torch.onnx.export(program, input_names=names, output_names=["logits"], verbose=False)


def run_onnx(session: object, pixel_values: torch.Tensor, patch_offsets: torch.Tensor | None = None) -> torch.Tensor:
    """The logits of an `onnxruntime.InferenceSession`; only a graph that weighs tiles is told where they lie."""
    inputs = {"pixel_values": pixel_values, "patch_offsets": patch_offsets}
    (logits,) = session.run(None, {taken.name: inputs[taken.name].numpy() for taken in session.get_inputs()})
    return torch.from_numpy(logits)


def export_onnx(model: Reg4PruForSemanticSegmentation, image_size: tuple[int, int], path: Path) -> None:
    """
    Write the pruned model, with its present keep rates, as an ONNX file with a dynamic batch.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model.
        image_size (`tuple[int, int]`): Height and width of the images.
        path (`Path`): The file to write.
    """
    exported = _onnx_program(export_program(model, image_size))
    exported.model.metadata_props.update(
        {
            "keep_rates": json.dumps(model.config.keep_rates),
            "image_size": json.dumps(image_size),
            "id2label": json.dumps(model.config.id2label),
        }
    )
    exported.save(path)


def compare(model: Reg4PruForSemanticSegmentation, image_size: tuple[int, int], path: Path) -> tuple[float, float]:
    """
    How far the logits of onnxruntime are from those of the model, over batches of one and of three.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): What was exported.
        image_size (`tuple[int, int]`): Height and width of the images.
        path (`Path`): The ONNX file.

    Returns:
        `tuple[float, float]`: the largest difference, and the share of the logits that differ by more than
        [`TOLERANCE`] of the largest logit.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest, shares = 0.0, []
    for batch_size in (1, 3):
        images = torch.randn(batch_size, model.config.num_channels, *image_size)
        offsets = tiles_in_a_row(batch_size, image_size[1]) if weighs_tiles(model.config, image_size) else None
        with torch.no_grad():
            wanted = model(images, patch_offsets=offsets).logits
        difference = (wanted - run_onnx(session, images, offsets)).abs().nan_to_num(nan=torch.inf)
        largest = max(largest, difference.max().item())
        shares.append((difference > TOLERANCE * wanted.abs().max()).float().mean().item())
    return largest, max(shares)


def check_allocation(config: Reg4PruConfig) -> None:
    """Raises `ValueError` if tiles share a budget: graphs have fixed numbers of tokens."""
    if config.allocation == "image":
        raise ValueError(
            "The tiles of an image share one budget (`allocation` is 'image'), but exports and engines have a fixed "
            "number of tokens for each tile: add --allocation tile."
        )


def export_checked(model: Reg4PruForSemanticSegmentation, image_size: tuple[int, int], path: Path) -> float:
    """
    [`export_onnx`], and the file is there only if onnxruntime computes what the model computes.

    Returns:
        `float`: the largest difference of the logits.

    Raises:
        `ValueError`: if it computes something else, if tokens are selected by chance, which nothing can check, or if
            tiles share the budget of their image, which a graph of one batch of tiles does not know.
    """
    check_allocation(model.config)
    rates = expand_keep_rates(model.config.keep_rates, model.config.num_stages)
    if min(rates, default=1.0) < 1 and any(isinstance(selector, RandomSelector) for selector in model.selectors):
        raise ValueError(
            f"The checkpoint selects tokens at random (`selector` is {model.config.selector!r}), so an export cannot "
            "be checked: export it unpruned (--keep_rates 1.0), or a checkpoint with another selector."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, under its own name: large models are written as several files that name each other.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unchecked-") as folder:
        unchecked = Path(folder) / path.name
        export_onnx(model, image_size, unchecked)
        difference, share_off = compare(model, image_size, unchecked)
        if share_off > MAX_SHARE_OFF:
            raise ValueError(
                f"The export is wrong and was not kept: {share_off:.0%} of its logits are off, by up to "
                f"{difference:.1e}. Report it with the versions of torch, onnx and onnxruntime."
            )
        for written in Path(folder).iterdir():
            written.replace(path.parent / written.name)
    return difference
