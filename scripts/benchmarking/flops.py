"""
Floating-point operations of a forward pass, computed from the configuration: two per multiply-add of matrix products,
convolutions and attention, independent of kernels. As usual, norms, activations and softmax are not counted.
"""

from modeling_reg4pru import Reg4PruConfig
from modeling_reg4pru.configuration_reg4pru import expand_keep_rates
from modeling_reg4pru.drift_correction import DriftCorrection
from modeling_reg4pru.token_selectors import SELECTOR_CLASSES, stage_counts


def patch_counts(config: Reg4PruConfig, num_patches: int) -> list[int]:
    """Number of patch tokens that each layer processes at inference, with the keep rates of the configuration."""
    rates = expand_keep_rates(config.keep_rates, config.num_stages)
    after_stage = dict(zip(config.pruning_layers, stage_counts(config, rates, num_patches), strict=True))
    counts, active = [], num_patches
    for layer in range(config.num_hidden_layers):
        counts.append(active)
        active = num_patches if layer == config.reactivation_layer else after_stage.get(layer, active)
    return counts


def token_counts(config: Reg4PruConfig, num_patches: int) -> list[int]:
    """Number of tokens of every layer at inference, prefix, query and context tokens included."""
    return [
        patches
        + config.num_prefix_tokens
        + (config.num_queries if layer >= config.first_query_layer else 0)
        + (config.context_grid**2 if patches < num_patches else 0)
        for layer, patches in enumerate(patch_counts(config, num_patches))
    ]


def forward_flops(config: Reg4PruConfig, grid_size: tuple[int, int], batch_size: int = 1) -> dict[str, int]:
    """
    Operations of one forward pass at inference, with the keep rates and the reactivation layer of the configuration.

    Args:
        config ([`Reg4PruConfig`]): Architecture, keep rates, reactivation layer.
        grid_size (`tuple[int, int]`): Rows and columns of patches.
        batch_size (`int`, *optional*, defaults to 1): Images.

    Returns:
        `dict[str, int]`: operations of the `patch_embedding`, of `attention` (scores and weighted sum), of `linear`
        (projections and MLPs), of the `selectors` with the drift corrections and the means of context tokens, and of
        the `heads`.
    """
    width = config.hidden_size
    num_patches = grid_size[0] * grid_size[1]
    counts = token_counts(config, num_patches)
    mlp_products = 3 if config.use_gated_mlp else 2
    linear = sum(2 * tokens * (4 * width**2 + mlp_products * width * config.intermediate_size) for tokens in counts)

    features, upscale = num_patches, 0
    for _ in range(config.num_upscale_blocks):
        features *= 4
        upscale += 2 * features * width**2 + 2 * features * 9 * width  # transposed 2x2, then depthwise 3x3
    heads = upscale + config.num_queries * (6 * width**2 + 2 * width * features)
    if not config.is_binary:  # class head, and class scores of every pixel
        heads += config.num_queries * (2 * width * (config.num_labels + 1) + 2 * config.num_labels * features)
    parts = {
        "patch_embedding": 2 * num_patches * width * config.num_channels * config.patch_size**2,
        "attention": sum(4 * tokens**2 * width for tokens in counts),
        "linear": linear,
        "selectors": _selector_flops(config, num_patches),
        "heads": heads,
    }
    return {name: batch_size * flops for name, flops in parts.items()}


def _selector_flops(config: Reg4PruConfig, num_patches: int) -> int:
    """
    If its stage removes any tokens, a selector runs on its pool and a drift correction on the tokens that leave, or on
    all active ones with the selection pool of all tokens.
    """
    active, scored, corrected = num_patches, 0, 0
    for kept in stage_counts(config, expand_keep_rates(config.keep_rates, config.num_stages), num_patches):
        pool = active if config.selection_pool == "active" else num_patches
        if kept < pool:
            scored += pool
            corrected += active - kept if config.selection_pool == "active" else active
            active = kept
    flops = SELECTOR_CLASSES[config.selector].flops_per_token(config.hidden_size) * scored
    if config.drift_correction:
        flops += DriftCorrection.flops_per_token(config.hidden_size) * corrected
    if active < num_patches:  # means of states, and of cos and sin
        tables = 2 * config.hidden_size // config.num_attention_heads if config.positions == "rotary" else 0
        flops += 2 * config.context_grid**2 * num_patches * (config.hidden_size + tables)
    return flops
