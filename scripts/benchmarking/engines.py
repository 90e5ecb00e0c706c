"""Engines that a model can run in: PyTorch in two precisions, torch.compile, ONNX Runtime in two precisions."""

import copy
import logging
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.segmentation_head import semantic_logits

from ..common.devices import fast_dtype
from ..inference.onnx_export import export_module, run_onnx, weighs_tiles

_ONNX = ("onnx", "onnx_int8")


class Logits(nn.Module):
    """
    A model, ours or EoMT of transformers, as a function: images, and optionally where they lie as tiles, to logits
    `(batch, num_labels, map_height, map_width)`.

    Args:
        model (`nn.Module`): In evaluation mode. The masked attention of EoMT of transformers must be annealed to zero;
            the probability becomes a constant here, as reading it from a tensor breaks compiled graphs and exports.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.is_ours = isinstance(model, Reg4PruForSemanticSegmentation)
        if not self.is_ours:
            model = copy.copy(model)  # shallow: the weights are shared
            model._buffers = {name: value for name, value in model._buffers.items() if name != "attn_mask_probs"}
            model.attn_mask_probs = (0.0,) * model.config.num_blocks
        self.model = model

    def forward(self, pixel_values: torch.Tensor, patch_offsets: torch.Tensor | None = None) -> torch.Tensor:
        if self.is_ours:
            return self.model(pixel_values, patch_offsets=patch_offsets).logits
        outputs = self.model(pixel_values)
        # With one query there is no class to tell, and the class head of EoMT is random.
        classes = outputs.class_queries_logits if self.model.config.num_queries > 1 else None
        return semantic_logits(outputs.masks_queries_logits, classes)


class EngineModel(nn.Module):
    """
    A function from images to logits in the place of a model, for [`~modeling_reg4pru.predict_image`]. Its keep rates
    are fixed.

    Args:
        run (`Callable`): From images `(batch, channels, height, width)` and `patch_offsets` to logits; from
            [`build_engine`].
        device (`torch.device`): Device of the images.
        id2label (`dict[int, str]`): Classes of the model.
    """

    def __init__(self, run: Callable[..., torch.Tensor], device: torch.device, id2label: dict[int, str]):
        super().__init__()
        self.run, self.device, self.dtype = run, device, torch.float32
        # Its input is one batch of tiles, of whatever images.
        self.config = SimpleNamespace(allocation="tile", num_labels=len(id2label), id2label=id2label)

    def forward(
        self,
        pixel_values: torch.Tensor,
        keep_rates: str = "config",
        output_keep_masks: bool = False,
        patch_offsets: torch.Tensor | None = None,
    ):
        logits, counts = self.run(pixel_values, patch_offsets), torch.zeros(0, 1, dtype=torch.long)
        return SimpleNamespace(logits=logits, class_queries_logits=None, keep_masks=None, token_counts=counts)


def why_not(engine: str, device: torch.device) -> str | None:
    """Why an engine cannot be measured on this device; `None` if it can."""
    if engine == "bfloat16" and fast_dtype(str(device)) != "bfloat16":
        return "this device has no instructions for bfloat16 and emulates it"
    if engine == "compile" and device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler, and there is none"
    if engine in _ONNX and device.type != "cpu":
        return "ONNX Runtime is measured on the CPU only"
    if engine in _ONNX:
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            return f'{error.name} is not installed: pip install "reg4pru[export]"'
    return None


def build_engine(
    engine: str, logits: Logits, image_size: tuple[int, int], folder: Path, device: torch.device
) -> Callable[..., torch.Tensor]:
    """
    Build the function from images of one size, and `patch_offsets` or `None`, to logits, images and logits in
    `float32`: casts are part of what is measured.

    Args:
        engine (`str`): One of [`~reg4pru.benchmarking.arguments.ENGINES`] for which [`why_not`] returns `None`.
        logits ([`Logits`]): The model, in float32.
        image_size (`tuple[int, int]`): Height and width.
        folder (`Path`): An empty folder, for the files of an engine.
        device (`torch.device`): Device to compute on.
    """
    if engine == "float32":
        return logits
    if engine == "bfloat16":
        half = copy.deepcopy(logits).to(torch.bfloat16)
        return lambda pixel_values, offsets=None: half(pixel_values.to(torch.bfloat16), offsets).float()
    if engine == "compile":
        return torch.compile(logits, fullgraph=True, dynamic=False)
    return _onnx(logits, image_size, folder, quantised=engine == "onnx_int8")


def engine_model(
    engine: str, model: Reg4PruForSemanticSegmentation, image_size: tuple[int, int], scratch: str
) -> EngineModel:
    """
    A model in an engine, in the place of the model itself.

    Args:
        engine (`str`), image_size (`tuple[int, int]`): As in [`build_engine`].
        model ([`Reg4PruForSemanticSegmentation`]): The model, at the keep rates of its configuration.
        scratch (`str`): A folder, for a folder of the engine's files.
    """
    files = Path(tempfile.mkdtemp(dir=scratch))
    run = build_engine(engine, Logits(model).eval(), image_size, files, model.device)
    return EngineModel(run, model.device, model.config.id2label)


def _onnx(logits: Logits, image_size: tuple[int, int], folder: Path, quantised: bool) -> Callable[..., torch.Tensor]:
    import onnxruntime

    path, config = folder / "model.onnx", logits.model.config
    weighs = logits.is_ours and weighs_tiles(config, image_size)
    export_module(logits, config.num_channels, image_size, weighs).save(path)
    if quantised:
        from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

        linear, path = folder / "folded.onnx", folder / "int8.onnx"
        # Weights that a graph reorders first, as the heads do, become constants, which alone are quantised.
        quant_pre_process(folder / "model.onnx", linear, skip_symbolic_shape=True)
        # The convolutions of patch embedding and heads are left out: quantised dynamically they are slower.
        logging.disable(logging.INFO)  # it logs every tensor
        try:
            quantize_dynamic(
                linear, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
            )
        finally:
            logging.disable(logging.NOTSET)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    return partial(run_onnx, session)
