"""
Export the pruned model of a checkpoint as an ONNX file for any batch size, and check it with ONNX Runtime.

Input `pixel_values` (batch, channels, height, width), with `blend_share_weight` also `patch_offsets` (batch, 9) of the
image processor; output `logits` (batch, num_labels, map_height, map_width). Keep
rates and image size are fixed in the file and noted in its metadata; so are the numbers of tokens, which is what makes
pruning fast in every runtime. Needs `pip install "reg4pru[export]"`.

Example:
    reg4pru export --model_name_or_path outputs/tiny/last --output model.onnx --keep_rates 0.7
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .common.cli import CommandParser, set_up_logging

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ExportArguments:
    """What is exported."""

    _argument_group_name = "export"

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder or a Hub id."})
    output: str = field(metadata={"help": "The ONNX file."})
    keep_rates: list[float] | None = field(
        default=None, metadata={"help": "One for all stages or one per stage; default: those of the checkpoint."}
    )
    allocation: Literal["tile"] | None = field(
        default=None,
        metadata={"help": "'tile' exports a checkpoint whose tiles share a budget with a fixed budget per tile."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the input images; default: that of the checkpoint."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing file."})


def main(argv: list[str] | None = None) -> int:
    """Export a checkpoint."""
    parser = CommandParser(ExportArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    set_up_logging()
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        parser.error(f'The export needs {error.name}: pip install "reg4pru[export]".')
    from .common.output_checks import check_writable
    from .inference.loading import check_image_size, load_model
    from .inference.onnx_export import export_checked

    path = Path(arguments.output)
    try:
        if path.exists() and not arguments.overwrite:
            raise ValueError(f"--output is {path}, which exists: choose another name, or replace it with --overwrite.")
        check_writable(path, "--output")
        model = load_model(arguments.model_name_or_path)
        if arguments.keep_rates is not None:
            single = len(arguments.keep_rates) == 1
            model.set_keep_rates(arguments.keep_rates[0] if single else arguments.keep_rates)
        if arguments.allocation:
            model.config.allocation = arguments.allocation
        size = model.config.image_size if arguments.image_size is None else arguments.image_size
        image_size = (size, size) if isinstance(size, int) else tuple(size)
        check_image_size(model.config, *image_size)
        difference = export_checked(model, image_size, path)
    except ValueError as error:
        parser.error(str(error))
    logger.info(
        "%s: %.1f MB, keep rates %s, images of %d x %d; onnxruntime differs from PyTorch by %.1e at most.",
        path,
        path.stat().st_size / 1e6,
        model.config.keep_rates,
        *image_size,
        difference,
    )
    return 0
