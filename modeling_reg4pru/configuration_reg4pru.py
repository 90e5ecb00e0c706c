"""Configuration of Reg4Pru models: EoMT-DINOv3's fields, and how tokens are selected, pruned and routed."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from transformers import EomtConfig, EomtDinov3Config, logging

from .token_bank import routing_window_range
from .token_selectors import BACKGROUND_NAMES, SELECTOR_CLASSES

logger = logging.get_logger(__name__)

TRAIN_PRUNINGS = ("none", "soft", "hard")
SELECTION_POOLS = ("active", "all")
ALLOCATIONS = ("tile", "image")
POSITIONS = ("rotary", "learned")
# What a configuration may hold beside its fields: what `PreTrainedConfig` and the Auto classes keep there.
OTHER_FIELDS = {
    "attn_implementation", "auto_map", "custom_pipelines", "model_type", "name_or_path", "num_labels",
    "quantization_config", "return_dict", "torch_dtype", "use_cache", "use_return_dict",
}  # fmt: skip


def expand_keep_rates(keep_rates: float | Sequence[float] | None, num_stages: int) -> tuple[float, ...]:
    """
    One keep rate per pruning stage.

    Args:
        keep_rates (`float`, sequence of `float` or `None`):
            Fraction of a stage's pool that stays, each in (0, 1]. A single number holds for every stage; `None`, which
            switches pruning off, is 1.0 at every stage.
        num_stages (`int`):
            Number of pruning stages.

    Returns:
        `tuple[float, ...]` of length `num_stages`.

    Raises:
        `ValueError`: for a rate outside (0, 1] or a sequence of another length.
    """
    if keep_rates is None:
        return (1.0,) * num_stages
    if isinstance(keep_rates, (np.generic, np.ndarray, torch.Tensor)):
        keep_rates = keep_rates.tolist()
    if isinstance(keep_rates, (int, float)):
        keep_rates = (keep_rates,) * num_stages
    if not isinstance(keep_rates, (list, tuple)) or not all(isinstance(rate, (int, float)) for rate in keep_rates):
        raise ValueError(f"`keep_rates` is {keep_rates!r}: give a number, or one number per stage.")
    if len(keep_rates) != num_stages:
        raise ValueError(
            f"`keep_rates` has {len(keep_rates)} entries, {list(keep_rates)}, but there are {num_stages} pruning "
            "stages (`pruning_layers`): give one rate per stage, or a single number for all of them."
        )
    for rate in keep_rates:
        if not 0 < rate <= 1:
            raise ValueError(f"`keep_rates` contains {rate}: every keep rate must lie in (0, 1].")
    return tuple(float(rate) for rate in keep_rates)


@strict
class Reg4PruConfig(EomtDinov3Config):
    r"""
    Configuration of [`Reg4PruForSemanticSegmentation`]: an EoMT-DINOv3 segmentation model whose patch tokens are
    pruned at a few depths, and which is trained with random token routing (Reg4Pru, arXiv 2602.02163). The defaults
    give a ViT-S/16 with a single vessel query, pruned to 0.7 of its tokens at each of three stages.

    All fields of [`~transformers.EomtDinov3Config`] apply; the ones below are new or have another default.

    Args:
        pruning_layers (`list[int]`, *optional*):
            Layers after which tokens are pruned (the pruning stages), in ascending order. Unset, they stand at a
            quarter, a half and three quarters of the depth (2, 5 and 8 of 12). An empty list gives a dense model.
        keep_rates (`float`, `list[float]` or `None`, *optional*, defaults to 0.7):
            Fraction of a stage's pool that stays, in (0, 1]; one number for all stages or one per stage. Rates
            compound. `None`: the model is dense, neither pruned nor, in training, routed.
        selector (`str`, *optional*, defaults to `"mlp"`):
            Scores the patch tokens: `"mlp"` (DynamicViT's, learns through the policy), `"foreground_mlp"` (the same
            layers, which learn where the foreground is), `"learned_query"` (CROPR's, learns that, too), `"divergence"`
            (the same layers, which learn what dropping a token would change, without labels: by in-place distillation
            with drift corrections, or fitted to a finished model by `reg4pru prune`), `"divergence_query"` (CROPR's,
            learns that) or `"random"` (a control). Those that learn where the foreground is are trained only where
            class 0 is background.
        train_pruning (`str`, *optional*, defaults to `"soft"`):
            How tokens are pruned in training: `"none"`, `"soft"` (a policy hides them from the others' attention) or
            `"hard"` (they are physically removed).
        selection_pool (`str`, *optional*, defaults to `"active"`):
            `"active"`: a stage chooses among the survivors of the previous one. `"all"`: among all patch tokens, so
            that a token that was pruned early can come back.
        reactivation_layer (`int`, *optional*):
            Layer after which the preserved tokens are put back into the sequence; defaults to the last but one.
        blend_share_weight (`float`, *optional*, defaults to 0.0):
            Where the model is given tiles that overlap (`patch_offsets`), a stage adds this number times the logarithm
            of a patch's blend share to its score at inference: little is computed that the blend throws away. 0: off.
        allocation (`str`, *optional*, defaults to `"tile"`):
            What a keep rate holds for at inference: `"tile"`: every tile keeps the same number of tokens. `"image"`:
            a stage keeps the best tokens of all tiles of an image, which must all be in the batch. What comes without
            `patch_offsets`, and every crop in training, is an image of one tile.
        drift_correction (`bool`, *optional*, defaults to `False`):
            Whether pruned tokens come back with a guess of the state that the layers they missed would have given
            them ([`~modeling_reg4pru.drift_correction.DriftCorrection`]), not with their last state. It learns where
            training removes tokens, `train_pruning="hard"`, and best by distillation.
        context_grid (`int`, *optional*, defaults to 0):
            Cells a side. Above 0, what the first stage drops goes on, averaged by cell, as this number squared of
            context tokens until the reactivation, so that what stays stands for the whole image, smooth classes too.
        routing (`bool`, *optional*, defaults to `True`):
            Random token routing, in training only.
        routing_keep_rate (`float`, *optional*, defaults to 0.5):
            Fraction of the active patch tokens that runs through the routing window, in (0, 1].
        routing_window (`list[int]`, *optional*):
            `[l, n]`: the routed tokens skip the layers l+1..n. Unset, a window is drawn in every forward pass.
        routing_probability (`float`, *optional*, defaults to 1.0):
            Probability that a training forward pass routes, in [0, 1].
        budget_loss_weight (`float`, *optional*, defaults to 4.0):
            Weight of the budget loss of the `"mlp"` selector.
        selector_loss_weight (`float`, *optional*, defaults to 4.0):
            Weight of the foreground loss, or of the divergence loss, of the selectors that learn by one.
        selector_temperature (`float`, *optional*, defaults to 1.0):
            Temperature of the Gumbel softmax, above 0.
        token_multiple (`int`, *optional*, defaults to 8):
            Prefix and kept tokens together are rounded to a multiple of this number, as fast kernels like it.
        masked_attention (`bool`, *optional*, defaults to `False`):
            EoMT's query-to-patch masked attention and deep supervision in training; never at inference. It must be
            annealed away, by [`Reg4PruForSemanticSegmentation.set_mask_annealing`] in every step, as `reg4pru train`
            and the callback `PruningSchedule` do, or the queries rely on a mask that is not there at inference.
        positions (`str`, *optional*, defaults to `"rotary"`):
            Positions of the patches: `"rotary"` (DINOv3) or `"learned"` (DINOv2, ViT, MAE), a table that is added to
            the patch embeddings.
        position_grid (`list[int]`, *optional*):
            Rows and columns of the table of learned positions; defaults to the grid of `image_size`. Images of another
            grid get the table by bicubic interpolation.
        position_antialias (`bool`, *optional*, defaults to `False`):
            Whether that interpolation is antialiased, as it is in DINOv2 with registers.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels that do not count in the loss.

    Example:

    ```python
    >>> from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation

    >>> config = Reg4PruConfig(image_size=512, keep_rates=[0.8, 0.7, 0.6])
    >>> model = Reg4PruForSemanticSegmentation(config)
    ```
    """

    model_type = "reg4pru"
    # Trainer gathers every output that is not named here; these are scalars, counts or large maps.
    keys_to_ignore_at_inference = [  # noqa: RUF012 (Trainer adds a list to it)
        "budget_loss",
        "loss_parts",
        "token_counts",
        "token_ids",
        "patch_offsets",
        "pixel_mask",
        "keep_masks",
        "masks_queries_logits",
        "class_queries_logits",
    ]

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    image_size: int | list[int] | tuple[int, ...] = 1024
    patch_size: int = 16
    num_blocks: int = 3
    num_queries: int = 1

    pruning_layers: list[int] | tuple[int, ...] | None = None
    keep_rates: float | int | list[float | int] | tuple[float | int, ...] | None = 0.7
    selector: str = "mlp"
    train_pruning: str = "soft"
    selection_pool: str = "active"
    blend_share_weight: float | int = 0.0
    allocation: str = "tile"
    reactivation_layer: int | None = None
    drift_correction: bool = False
    context_grid: int = 0
    routing: bool = True
    routing_keep_rate: float | int = 0.5
    routing_window: list[int] | tuple[int, ...] | None = None
    routing_probability: float | int = 1.0
    budget_loss_weight: float | int = 4.0
    selector_loss_weight: float | int = 4.0
    selector_temperature: float | int = 1.0
    token_multiple: int = 8
    masked_attention: bool = False
    semantic_loss_ignore_index: int = 255
    positions: str = "rotary"
    position_grid: list[int] | tuple[int, ...] | None = None
    position_antialias: bool = False
    # The authors train without this augmentation of rotary positions, which EoMT-DINOv3 has by default.
    pos_embed_rescale: float | None = None

    def __post_init__(self, **kwargs):
        unknown = sorted(name for name in kwargs if name not in OTHER_FIELDS and not name.startswith("_"))
        if unknown:
            raise ValueError(f"Reg4PruConfig has no field {', '.join(unknown)}.")
        super().__post_init__(**kwargs)
        # JSON knows no tuples; as lists a configuration equals the one that is read back.
        for field in ("pruning_layers", "keep_rates", "routing_window", "position_grid"):
            if isinstance(getattr(self, field), tuple):
                setattr(self, field, list(getattr(self, field)))
        depth = self.num_hidden_layers
        if self.reactivation_layer is None:
            self.reactivation_layer = max(depth - 2, 0)
        if self.pruning_layers is None:
            quarters = {quarter * depth // 4 - 1 for quarter in (1, 2, 3)}
            self.pruning_layers = sorted(layer for layer in quarters if 0 <= layer < self.reactivation_layer)

        if self.positions == "learned" and self.position_grid is None and self.patch_size > 0:  # else refused below
            self.position_grid = [side // self.patch_size for side in self.input_size]

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        # A pipeline that a repository names must be trusted; where this package is installed, its own is taken.
        if not cls.__module__.startswith("transformers_modules."):
            config_dict = {key: value for key, value in config_dict.items() if key != "custom_pipelines"}
        # An EoMT checkpoint stores only what differs from *its* defaults, which are not ours.
        if config_dict.get("model_type") == EomtDinov3Config.model_type:
            config_dict = {**EomtDinov3Config.from_dict(config_dict).to_dict(), "model_type": cls.model_type}
        if config_dict.get("model_type") == EomtConfig.model_type:
            config_dict = {**eomt_fields(EomtConfig.from_dict(config_dict)), "model_type": cls.model_type}
        known = cls.default_fields() | OTHER_FIELDS
        unknown = sorted(name for name in config_dict if name not in known and not name.startswith("_"))
        if unknown:  # of another version: what we write ourselves is checked when it is written
            logger.warning("Ignored unknown fields of the configuration: %s", ", ".join(unknown))
        config_dict = {name: value for name, value in config_dict.items() if name not in unknown}
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def default_fields(cls) -> set[str]:
        """Names of all fields."""
        return {entry.name for entry in dataclasses.fields(cls)} | {"model_type", "id2label", "label2id"}

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of `image_size`."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def num_stages(self) -> int:
        """Number of pruning stages."""
        return len(self.pruning_layers)

    @property
    def num_prefix_tokens(self) -> int:
        """CLS and register tokens."""
        return 1 + self.num_register_tokens

    @property
    def first_query_layer(self) -> int:
        """The layer before which the query tokens enter."""
        return self.num_hidden_layers - self.num_blocks

    @property
    def selectors_learn(self) -> bool:
        """Whether training, as it is configured, gives the selectors a gradient."""
        learns_from = SELECTOR_CLASSES[self.selector].learns_from
        return learns_from == "foreground" or (learns_from is not None and self.train_pruning != "none")

    @property
    def has_background(self) -> bool:
        """Whether class 0 is background: of two classes it always is, of more its name says so."""
        return self.num_labels == 2 or self.id2label[0].lower() in BACKGROUND_NAMES

    @property
    def is_binary(self) -> bool:
        """A single query for a single foreground class: logits are [0, m], and there is no class head."""
        return self.num_queries == 1 and self.num_labels == 2

    def validate_sizes(self):
        """Part of `@strict`-powered validation: sizes that no model can have."""
        for field in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size",
            "num_channels",
        ):  # fmt: skip
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` is {getattr(self, field)}: it must be at least 1.")
        if self.num_register_tokens < 0:
            raise ValueError(f"`num_register_tokens` is {self.num_register_tokens}: it must not be negative.")
        # Each channel of a rotary position is turned together with another one, by row and by column.
        multiple = self.num_attention_heads * (4 if self.positions == "rotary" else 1)
        if self.hidden_size % multiple:
            raise ValueError(
                f"`hidden_size` is {self.hidden_size} and `num_attention_heads` {self.num_attention_heads}: the width "
                f"must be a multiple of {multiple}, a whole number of channels (of four for rotary positions) a head."
            )
        if len(self.input_size) != 2 or min(self.input_size) < self.patch_size:
            raise ValueError(
                f"`image_size` is {self.image_size}: it must be a side or [height, width], with room for a patch of "
                f"{self.patch_size} pixels (`patch_size`)."
            )
        if self.position_grid is not None and (len(self.position_grid) != 2 or min(self.position_grid) < 1):
            raise ValueError(f"`position_grid` is {self.position_grid}: it must be [rows, columns].")

    def validate_classes(self):
        """Part of `@strict`-powered validation: a class that can never win is found here, not after training."""
        if self.num_labels < 2:
            raise ValueError(
                f"`num_labels` is {self.num_labels}: the background is a class, too, so there are at least 2."
            )
        if self.num_queries < 1:
            raise ValueError(f"`num_queries` is {self.num_queries}: there must be at least one.")
        if self.num_labels > 2 and self.num_queries == 1:
            raise ValueError(
                f"`num_labels` is {self.num_labels} but `num_queries` is 1: one query can only tell a foreground from "
                f"its background. Set `num_queries`, to some times the number of classes (EoMT has 100)."
            )

    def validate_token_pruning(self):
        """Part of `@strict`-powered validation: names the field, its value and what is allowed."""
        for field, allowed in (
            ("selector", tuple(SELECTOR_CLASSES)),
            ("train_pruning", TRAIN_PRUNINGS),
            ("selection_pool", SELECTION_POOLS),
            ("allocation", ALLOCATIONS),
            ("positions", POSITIONS),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"`{field}` is {getattr(self, field)!r}: it must be one of {', '.join(allowed)}.")
        if self.train_pruning == "soft" and SELECTOR_CLASSES[self.selector].learns_from != "policy":
            by_policy = ", ".join(name for name, cls in SELECTOR_CLASSES.items() if cls.learns_from == "policy")
            raise ValueError(
                f"`train_pruning='soft'` with `selector={self.selector!r}`, which does not learn through a policy; "
                f"{by_policy} does. Use `train_pruning='hard'` or 'none'."
            )

        if self.drift_correction and self.train_pruning != "hard":
            raise ValueError(
                f"`drift_correction=True` with `train_pruning={self.train_pruning!r}`: a correction learns from "
                "tokens that are removed. Set `train_pruning='hard'` or `drift_correction=False`."
            )

        depth = self.num_hidden_layers
        layers = list(self.pruning_layers)
        if not 1 <= self.num_blocks <= depth:
            raise ValueError(f"`num_blocks` is {self.num_blocks}: it must lie between 1 and the {depth} layers.")
        if not 0 <= self.reactivation_layer < depth:
            raise ValueError(
                f"`reactivation_layer` is {self.reactivation_layer}: it must be one of the layers 0..{depth - 1}."
            )
        if layers != sorted(set(layers)):
            raise ValueError(f"`pruning_layers` is {layers}: the layers must be distinct and in ascending order.")
        if layers and layers[0] < 0:
            raise ValueError(f"`pruning_layers` is {layers}: layers are counted from 0.")
        if layers and layers[-1] >= self.reactivation_layer:
            raise ValueError(
                f"`pruning_layers` is {layers}, but tokens are reactivated after layer {self.reactivation_layer} "
                "(`reactivation_layer`): every stage must come before it."
            )
        expand_keep_rates(self.keep_rates, len(layers))

        for field in ("budget_loss_weight", "selector_loss_weight", "blend_share_weight", "context_grid"):
            if getattr(self, field) < 0:
                raise ValueError(f"`{field}` is {getattr(self, field)}: it must not be negative.")
        if self.selector_temperature <= 0:
            raise ValueError(f"`selector_temperature` is {self.selector_temperature}: it must be above 0.")
        if self.token_multiple < 1:
            raise ValueError(f"`token_multiple` is {self.token_multiple}: it must be at least 1.")

    def validate_routing(self):
        """Part of `@strict`-powered validation."""
        if not 0 < self.routing_keep_rate <= 1:
            raise ValueError(f"`routing_keep_rate` is {self.routing_keep_rate}: it must lie in (0, 1].")
        if not 0 <= self.routing_probability <= 1:
            raise ValueError(f"`routing_probability` is {self.routing_probability}: it must lie in [0, 1].")
        if not self.routing:
            return
        if self.routing_window is None:
            routing_window_range(self.num_hidden_layers)
            return
        window = list(self.routing_window)
        if len(window) != 2 or not 0 <= window[0] < window[1] <= self.num_hidden_layers - 2:
            raise ValueError(
                f"`routing_window` is {window}: it must be [l, n] with 0 <= l < n <= {self.num_hidden_layers - 2} "
                f"(the last but one of {self.num_hidden_layers} layers); the layers l+1..n are skipped."
            )


def eomt_fields(config: EomtConfig) -> dict:
    """Our fields for an EoMT model on DINOv2: learned positions, and an MLP whose width follows from a ratio."""
    fields = {name: value for name, value in config.to_dict().items() if name not in ("mlp_ratio", "use_swiglu_ffn")}
    width = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:
        width = (int(width * 2 / 3) + 7) // 8 * 8
    return {
        **fields,
        "intermediate_size": width,
        "use_gated_mlp": config.use_swiglu_ffn,
        "key_bias": True,
        "positions": "learned",
    }


__all__ = ["Reg4PruConfig"]
