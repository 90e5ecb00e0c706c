"""Weights and architecture of a DINOv3 ViT backbone, in the names of EoMT-DINOv3."""

from torch import nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from .configuration_reg4pru import Reg4PruConfig

# What the two architectures share, and what therefore must agree before weights can move from one to the other.
BACKBONE_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "patch_size",
    "num_channels",
    "num_register_tokens",
    "query_bias",
    "key_bias",
    "value_bias",
    "proj_bias",
    "mlp_bias",
    "use_gated_mlp",
)
# Not a matter of fit, but the backbone was trained with them.
TRAINING_FIELDS = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale", "layerscale_value", "initializer_range")


def backbone_fields(backbone_config: DINOv3ViTConfig) -> dict:
    """The fields of [`Reg4PruConfig`] that a DINOv3 ViT configuration decides."""
    fields = {name: getattr(backbone_config, name) for name in BACKBONE_FIELDS + TRAINING_FIELDS}
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": backbone_config.rope_theta}
    return fields


def check_backbone(config: Reg4PruConfig, backbone_config: DINOv3ViTConfig, checkpoint: str) -> None:
    """
    Raises:
        `ValueError`: naming every field in which the configuration differs from the architecture of the checkpoint.
    """
    wanted = backbone_fields(backbone_config)
    differences = [
        f"`{name}` is {getattr(config, name)}, the checkpoint has {wanted[name]}"
        for name in BACKBONE_FIELDS
        if getattr(config, name) != wanted[name]
    ]
    theta = config.rope_parameters["rope_theta"]
    if theta != backbone_config.rope_theta:
        differences.append(f"`rope_theta` is {theta}, the checkpoint has {backbone_config.rope_theta}")
    if differences:
        raise ValueError(f"The configuration does not fit the backbone {checkpoint}: {'; '.join(differences)}.")


def load_backbone(model: nn.Module, backbone: DINOv3ViTModel) -> None:
    """
    Copy embeddings, layers and final norm of a DINOv3 ViT into a model with the names of EoMT-DINOv3.

    Raises:
        `RuntimeError`: from torch, if a weight is missing, left over or of another shape.
    """
    model.embeddings.load_state_dict(
        {name: weight for name, weight in backbone.embeddings.state_dict().items() if name != "mask_token"}
    )
    model.layers.load_state_dict(backbone.model.layer.state_dict())
    model.layernorm.load_state_dict(backbone.norm.state_dict())
