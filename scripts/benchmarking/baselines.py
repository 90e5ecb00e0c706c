"""Models that the benchmark compares: variants of shared weights, transformers' dense model, explicit policy."""

import copy

import torch
from transformers import EomtConfig, EomtDinov3Config, EomtDinov3ForUniversalSegmentation, EomtForUniversalSegmentation
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import apply_rotary_pos_emb

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from modeling_reg4pru.backbone_loading import PRUNING_WEIGHTS
from modeling_reg4pru.policy_attention import POLICY_EPSILON, Reg4PruAttention

# Width, layers, heads and patch size of DINOv3's ViTs; `debug` is for a quick look and for tests.
MODEL_SIZES = {
    "debug": (32, 6, 2, 8),
    "tiny": (192, 12, 3, 16),
    "small": (384, 12, 6, 16),
    "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 16),
}
# Names in EoMT on DINOv3, as here, and in EoMT on DINOv2.
EOMT_NAMES = {
    "embeddings.patch_embeddings.": "embeddings.patch_embeddings.projection.",
    "attention.o_proj.": "attention.out_proj.",
    "mlp.up_proj.": "mlp.fc1.",
    "mlp.down_proj.": "mlp.fc2.",
}


def model_config(model_size: str, image_size: int) -> Reg4PruConfig:
    """The shape of a DINOv3 ViT with four register tokens, and the modules of the default recipe."""
    width, layers, heads, patch_size = MODEL_SIZES[model_size]
    return Reg4PruConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch_size,
        image_size=image_size,
        num_register_tokens=4,
        train_pruning="hard",
        drift_correction=True,
    )


def dense_model(
    model: Reg4PruForSemanticSegmentation, image_size: int
) -> EomtDinov3ForUniversalSegmentation | EomtForUniversalSegmentation:
    """
    The dense model of transformers with the same weights and, as after training, without masked attention: EoMT on
    DINOv3 for rotary positions, EoMT on DINOv2 for learned ones.

    Raises:
        `RuntimeError`: if a weight that the output depends on has no counterpart.
    """
    if model.config.positions == "learned":
        dense = EomtForUniversalSegmentation(_eomt_config(model.config, image_size))
        weights = _eomt_weights(model, image_size)
    else:
        known = EomtDinov3Config().to_dict().keys() - {"model_type", "architectures", "transformers_version", "dtype"}
        fields = {name: value for name, value in model.config.to_dict().items() if name in known}
        dense = EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**{**fields, "image_size": image_size}))
        weights = model.state_dict()
    missing, unexpected = dense.load_state_dict(weights, strict=False)
    may_lack = ("class_predictor.", "criterion.", "embeddings.mask_token")
    unmatched = [name for name in missing if not name.startswith(may_lack)]
    unmatched += [name for name in unexpected if not name.startswith(PRUNING_WEIGHTS)]
    if unmatched:
        raise RuntimeError(f"The dense model of transformers lacks a counterpart of {', '.join(unmatched)}.")
    dense.attn_mask_probs.zero_()
    return dense.eval()


def _eomt_config(config: Reg4PruConfig, image_size: int) -> EomtConfig:
    known = EomtConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version", "dtype"}
    fields = {name: value for name, value in config.to_dict().items() if name in known}
    return EomtConfig(
        **{**fields, "image_size": image_size, "mlp_ratio": config.intermediate_size // config.hidden_size}
    )


def _eomt_weights(model: Reg4PruForSemanticSegmentation, image_size: int) -> dict[str, torch.Tensor]:
    """Our weights with the names of EoMT on DINOv2, which has positions for one image size only."""
    weights = {}
    for name, weight in model.state_dict().items():
        for ours, theirs in EOMT_NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    side = image_size // model.config.patch_size
    weights["embeddings.position_embeddings.weight"] = model.embeddings.positions((side, side))[0].detach().clone()
    return weights


def variant_config(config: Reg4PruConfig, **fields) -> Reg4PruConfig:
    """A validated copy of the configuration with other values in some fields."""
    other = copy.deepcopy(config)
    for name, value in fields.items():
        setattr(other, name, value)
    other.validate()
    return other


def variant(model: Reg4PruForSemanticSegmentation, **fields) -> Reg4PruForSemanticSegmentation:
    """The same model, sharing the weights in memory, with other values in some fields of its configuration."""
    other = copy.copy(model)
    other.config = variant_config(model.config, **fields)
    other.selectors_learn = other.config.selectors_learn
    return other


def explicit_policy_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, policy: torch.Tensor, scaling: float
) -> torch.Tensor:
    """
    DynamicViT's policy-gated softmax, computed explicitly over all pairs of tokens: what the extra channels replace.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch, heads, num_tokens, head_dim)`): As in plain attention.
        policy (`torch.Tensor` of shape `(batch, num_tokens)`): Keep decisions in [0, 1].
        scaling (`float`): Factor of the scores.

    Returns:
        `torch.Tensor` of shape `(batch, heads, num_tokens, head_dim)`.
    """
    scores = query @ key.transpose(2, 3) * scaling
    weights = (scores - scores.amax(dim=-1, keepdim=True).detach()).exp()
    itself = torch.eye(policy.shape[1], dtype=policy.dtype, device=policy.device)
    gate = (policy + POLICY_EPSILON)[:, None] + (1 - policy + POLICY_EPSILON)[:, None] * itself
    weights = weights * gate[:, None]
    return (weights / weights.sum(dim=-1, keepdim=True)) @ value


class ExplicitPolicyAttention(Reg4PruAttention):
    """[`Reg4PruAttention`] with the N × N softmax of [`explicit_policy_attention`] where there is a policy."""

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_embeddings=None,
        policy=None,
        query_mask=None,
        tile_lengths=None,
    ):
        if policy is None:
            return super().forward(
                hidden_states, attention_mask, position_embeddings, policy, query_mask, tile_lengths
            )
        shape = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        output = explicit_policy_attention(query, key, value, policy, self.scaling)
        return self.o_proj(output.transpose(1, 2).reshape(hidden_states.shape)), None


def use_explicit_attention(model: Reg4PruForSemanticSegmentation) -> Reg4PruForSemanticSegmentation:
    """Replace every attention module of the model; the weights are kept."""
    for layer in model.layers:
        explicit = ExplicitPolicyAttention(model.config)
        explicit.load_state_dict(layer.attention.state_dict(), assign=True)
        layer.attention = explicit.to(next(layer.parameters()).device)
    return model
