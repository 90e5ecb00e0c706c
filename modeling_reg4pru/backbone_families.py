"""
Families of plain vision transformers: how the weights of each are renamed, and how its configuration is read.

Whatever the family, patch embedding, layers and final norm end up in the names of EoMT-DINOv3; a learned position of
the CLS token becomes part of that token; a family without LayerScale has ones there.
"""

import math
import re
from collections.abc import Mapping

import torch
from transformers import PreTrainedConfig

# Families of transformers by their `model_type`: what their weights are called, in order of application.
_BERT_LIKE = {
    r"embeddings\.patch_embeddings\.projection\.": "embeddings.patch_embeddings.",
    r"mlp\.fc1\.": "mlp.up_proj.",
    r"mlp\.fc2\.": "mlp.down_proj.",
}
_VIT = _BERT_LIKE | {r"layernorm_before\.": "norm1.", r"layernorm_after\.": "norm2.", r"pooler\..*": ""}
# Up to transformers 5.17 a DINOv2 names its attention as BERT does, and so do the published files.
_DINOV2 = _BERT_LIKE | {
    r"encoder\.layer\.": "layers.",
    r"attention\.attention\.(q|k|v)\w+\.": r"attention.\1_proj.",
    r"attention\.output\.dense\.": "attention.o_proj.",
}
RENAMES: dict[str, dict[str, str]] = {
    "dinov3_vit": {r"model\.layer\.": "layers.", r"^norm\.": "layernorm."},
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "vit": _VIT,
    "vit_mae": _VIT,
    # timm's names, which the published files of MAE, DINO, DINOv2 and RETFound share.
    "timm": {
        r"^(cls_token|mask_token)$": r"embeddings.\1",
        r"^(reg_token|register_tokens)$": "embeddings.register_tokens",
        r"^pos_embed$": "embeddings.position_embeddings",
        r"^patch_embed\.proj\.": "embeddings.patch_embeddings.",
        r"^blocks\.": "layers.",
        r"attn\.proj\.": "attention.o_proj.",
        r"attn\.": "attention.",
        r"\b(ls|gamma_)([12])(\.gamma)?$": r"layer_scale\2.lambda1",
        r"mlp\.fc1\.": "mlp.up_proj.",
        r"mlp\.fc2\.": "mlp.down_proj.",
        r"^norm\.": "layernorm.",
        r"^(head|fc_norm|head_dist|decoder_\w+|rope)\b.*": "",
    },
    # EoMT on DINOv2, a whole segmentation model; see `eomt_weights`.
    "eomt": _BERT_LIKE | {r"attention\.out_proj\.": "attention.o_proj."},
}
# Fields of a DINOv3 ViT that a model of ours shares, or was trained with.
_DINOV3_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
    "patch_size", "num_channels", "num_register_tokens", "query_bias", "key_bias", "value_bias", "proj_bias",
    "mlp_bias", "use_gated_mlp", "layerscale_value", "initializer_range",
)  # fmt: skip
_VIT_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size",
    "num_channels", "initializer_range",
)  # fmt: skip
HEAD_DIM = 64  # of every ViT that timm calls tiny, small, base or large
HEADS_OF_WIDTH = {1280: 16, 1408: 16, 1664: 16}  # of the huge and giant ones, whose heads are wider


def rename(
    weights: Mapping[str, torch.Tensor], family: str, position_grid: tuple[int, int] | None = None
) -> dict[str, torch.Tensor]:
    """
    The weights of a family in our names.

    Args:
        weights (`Mapping[str, torch.Tensor]`): Of the checkpoint, in its own names.
        family (`str`): A key of [`RENAMES`].
        position_grid (`tuple[int, int]`, *optional*): Rows and columns of a table of positions; unset, a square.

    Returns:
        `dict[str, torch.Tensor]`: in our names; heads and mask tokens, which no backbone of ours has, are left out.

    Raises:
        `ValueError`: if a table of positions does not fit the grid.
    """
    renamed = {}
    for name, weight in weights.items():
        for pattern, ours in RENAMES[family].items():
            name = re.sub(pattern, ours, name)
        if name and not name.endswith("mask_token"):
            renamed[name] = weight
    _split_qkv(renamed)
    _split_swiglu(renamed)
    _fold_cls_position(renamed, position_grid)
    return renamed


def read_fields(config: PreTrainedConfig, weights: Mapping[str, torch.Tensor]) -> dict:
    """The fields of [`Reg4PruConfig`] that a configuration of transformers and its weights, in our names, decide."""
    if config.model_type == "dinov3_vit":
        fields = {name: getattr(config, name) for name in _DINOV3_FIELDS}
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        return fields | {"rope_parameters": rope, "positions": "rotary"}
    fields = {name: getattr(config, name) for name in _VIT_FIELDS} | shape_fields(weights)
    fields["position_antialias"] = config.model_type == "dinov2_with_registers"
    return fields | {"position_grid": list(position_grid(config))}


def position_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Rows and columns of patches that a configuration of transformers tells of, by its `image_size`."""
    size, patch = config.image_size, config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    return height // patch_height, width // patch_width


def shape_fields(weights: Mapping[str, torch.Tensor]) -> dict:
    """What the shapes of the weights, in our names, tell of the architecture."""
    kernel, registers = weights["embeddings.patch_embeddings.weight"], weights.get("embeddings.register_tokens")
    fields = {
        "hidden_size": kernel.shape[0],
        "num_channels": kernel.shape[1],
        "patch_size": kernel.shape[-1],
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers.")),
        "intermediate_size": weights["layers.0.mlp.up_proj.weight"].shape[0],
        "use_gated_mlp": "layers.0.mlp.gate_proj.weight" in weights,
        "num_register_tokens": 0 if registers is None else registers.shape[1],
        **{f"{name}_bias": f"layers.0.attention.{name[0]}_proj.bias" in weights for name in ("query", "key", "value")},
        "positions": "rotary",
    }
    table = weights.get("embeddings.position_embeddings.weight")
    if table is not None:
        side = math.isqrt(len(table))  # a square: `rename` saw to it, or whoever knows better says so
        fields |= {"positions": "learned", "position_grid": [side, side]}
    return fields


def timm_fields(architecture: str, weights: Mapping[str, torch.Tensor]) -> dict:
    """
    Fields of a timm model, or of a file in timm's names; see [`guess_heads`] for the one that they do not tell.

    Args:
        architecture (`str`): Its name in timm, such as `"vit_small_patch16_dinov3"`; empty if it is not known.
        weights (`Mapping[str, torch.Tensor]`): In our names.
    """
    fields = shape_fields(weights) | {"layer_norm_eps": 1e-6}
    if "reg" in architecture and fields["positions"] == "learned":
        fields["position_antialias"] = True
    if fields["positions"] == "rotary":  # DINOv3
        fields |= {"layer_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    return fields


def guess_heads(hidden_size: int) -> int:
    """Number of attention heads of a ViT of timm's, by its width: no weight tells it."""
    return HEADS_OF_WIDTH.get(hidden_size, max(1, hidden_size // HEAD_DIM))


def _split_qkv(weights: dict[str, torch.Tensor]) -> None:
    """timm keeps query, key and value in one matrix."""
    for name in [name for name in weights if ".attention.qkv." in name]:
        for part, weight in zip("qkv", weights.pop(name).chunk(3), strict=True):
            weights[name.replace("qkv", f"{part}_proj")] = weight.clone()


def _split_swiglu(weights: dict[str, torch.Tensor]) -> None:
    """DINOv2's giant keeps gate and value of its gated MLP in one matrix in some versions, the gate first."""
    for name in [name for name in weights if ".mlp.weights_in." in name]:
        gate, up = weights.pop(name).chunk(2)
        weights[name.replace("weights_in", "gate_proj")] = gate.clone()
        weights[name.replace("weights_in", "up_proj")] = up.clone()
    for name in [name for name in weights if ".mlp.weights_out." in name]:
        weights[name.replace("weights_out", "down_proj")] = weights.pop(name)


def _fold_cls_position(weights: dict[str, torch.Tensor], grid: tuple[int, int] | None) -> None:
    """A table of positions with an entry for the CLS token: that entry goes into the token, the rest is the table."""
    positions = weights.pop("embeddings.position_embeddings", None)
    if positions is None:
        return
    length = positions.shape[1]
    if grid is None:
        side = math.isqrt(length)
        grid = (side, side)
    num_prefix = length - grid[0] * grid[1]
    if num_prefix not in (0, 1):
        raise ValueError(
            f"The table of positions has {length} entries: it must be a grid of {grid[0]} x {grid[1]} patches, with "
            "or without one for the CLS token. Grids that are no square are known only from "
            "`image_size` in the configuration of a transformers model."
        )
    if num_prefix == 1:
        cls_token = weights["embeddings.cls_token"]
        weights["embeddings.cls_token"] = cls_token + positions[:, :1].to(cls_token.dtype)
    weights["embeddings.position_embeddings.weight"] = positions[0, num_prefix:].clone()
