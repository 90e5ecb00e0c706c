"""
Write the pruned model of a checkpoint as an ONNX file that takes any batch size, and check it with onnxruntime.

    reg4pru export --model_name_or_path path/to/checkpoint --output model.onnx --keep_rates 0.7

Input `pixel_values` (batch, channels, height, width), output `logits` (batch, num_labels, height / 4, width / 4). The
keep rates and the image size are fixed in the file, and noted in its metadata; so are the counts of tokens, which is
what makes pruning fast everywhere.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import HfArgumentParser

from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..console import set_up_logging

logger = logging.getLogger("export_onnx")


@dataclass
class ExportArguments:
    """What is exported."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of a Reg4Pru model."})
    output: str = field(metadata={"help": "The ONNX file."})
    keep_rates: list[float] | None = field(
        default=None, metadata={"help": "One for all stages or one per stage; default: those of the checkpoint."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Side of the images; default: the checkpoint's."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing file."})


class LogitsOnly(nn.Module):
    """The model as a function of images to logits, which is what graph formats know."""

    def __init__(self, model: Reg4PruForSemanticSegmentation):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def export_program(model: Reg4PruForSemanticSegmentation, image_size: tuple[int, int]) -> torch.export.ExportedProgram:
    """
    The pruned model, with its present keep rates, as a graph with a dynamic batch.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model; it is exported for inference.
        image_size (`tuple[int, int]`): Height and width of the images, multiples of the patch size.
    """
    module = LogitsOnly(model).eval()
    # A batch of one would be taken for a constant.
    example = torch.zeros(2, model.config.num_channels, *image_size, device=model.device, dtype=model.dtype)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes={"pixel_values": {0: batch}})


def export_onnx(model: Reg4PruForSemanticSegmentation, image_size: tuple[int, int], path: Path) -> None:
    """
    Write the pruned model, with its present keep rates, as an ONNX file with a dynamic batch.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model.
        image_size (`tuple[int, int]`): Height and width of the images.
        path (`Path`): The file to write.
    """
    exported = torch.onnx.export(
        export_program(model, image_size), input_names=["pixel_values"], output_names=["logits"], verbose=False
    )
    exported.model.metadata_props.update(
        {
            "keep_rates": json.dumps(model.config.keep_rates),
            "image_size": json.dumps(image_size),
            "id2label": json.dumps(model.config.id2label),
        }
    )
    exported.save(path)


def largest_difference(model: Reg4PruForSemanticSegmentation, image_size: tuple[int, int], path: Path) -> float:
    """Largest difference of the logits between onnxruntime and the model, over batches of one and of three."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for batch_size in (1, 3):
        images = torch.randn(batch_size, model.config.num_channels, *image_size)
        (logits,) = session.run(None, {"pixel_values": images.numpy()})
        with torch.no_grad():
            differences.append((model(images).logits - torch.from_numpy(logits)).abs().max().item())
    return max(differences)


def main(argv: list[str] | None = None) -> int:
    """Export a checkpoint."""
    set_up_logging()
    (arguments,) = HfArgumentParser(ExportArguments).parse_args_into_dataclasses(argv)
    path = Path(arguments.output)
    if path.exists() and not arguments.overwrite:
        raise ValueError(f"--output {path} exists: choose another name, or replace it with --overwrite.")
    model = Reg4PruForSemanticSegmentation.from_pretrained(arguments.model_name_or_path, dtype=torch.float32).eval()
    if arguments.keep_rates is not None:
        single = len(arguments.keep_rates) == 1
        model.set_keep_rates(arguments.keep_rates[0] if single else arguments.keep_rates)
    size = arguments.image_size or model.config.image_size
    image_size = (size, size) if isinstance(size, int) else tuple(size)
    path.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(model, image_size, path)
    difference = largest_difference(model, image_size, path)
    logger.info(
        "%s: %.1f MB, keep rates %s, images of %d x %d; onnxruntime differs from PyTorch by %.1e at most.",
        path,
        path.stat().st_size / 1e6,
        model.config.keep_rates,
        *image_size,
        difference,
    )
    return 0
