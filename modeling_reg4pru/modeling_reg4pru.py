"""Reg4Pru: an EoMT-DINOv3 segmentation model that drops tokens, and learns in training to read stale ones."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers import logging
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import EomtDinov3MaskHead, EomtDinov3PreTrainedModel
from transformers.utils.output_capturing import capture_outputs

from .backbone_loading import (
    HUB_ARGUMENTS,
    check_backbone,
    check_loading,
    load_backbone,
    read_backbone,
    read_eomt,
    with_dtype,
)
from .configuration_reg4pru import OTHER_FIELDS, Reg4PruConfig, expand_keep_rates
from .drift_correction import DriftCorrection, ZeroLinear
from .image_budget import follow_tokens
from .input_checks import check_inputs, check_pixel_mask, check_selectors, hide_labels, warn_of_untaught_selectors
from .modeling_outputs_reg4pru import Reg4PruSemanticSegmenterOutput
from .pipeline_reg4pru import CUSTOM_PIPELINES
from .policy_attention import Reg4PruAttention
from .segmentation_head import mask_probability, query_masks, semantic_logits
from .segmentation_loss import BinaryMaskLoss, SetMaskLoss
from .speed_budget import SpeedBudgetMixin
from .token_pruning import TokenPruning
from .token_selectors import INITIAL_BIAS, SELECTOR_CLASSES, CentredLinear
from .upscale_block import Reg4PruScaleBlock
from .vit_layers import Reg4PruEmbeddings, Reg4PruLayer, Reg4PruRotaryEmbedding

logger = logging.get_logger(__name__)


class Reg4PruPreTrainedModel(EomtDinov3PreTrainedModel):
    """Weights initialisation and loading."""

    config: Reg4PruConfig
    config_class = Reg4PruConfig
    base_model_prefix = "reg4pru"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Reg4PruLayer",)
    _supports_flash_attn = True
    _can_record_outputs = {"hidden_states": Reg4PruLayer, "attentions": Reg4PruAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Reg4PruForSemanticSegmentation):
            init.ones_(module.attn_mask_probs)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, CentredLinear):
            init.copy_(module.bias, torch.tensor(INITIAL_BIAS))


class Reg4PruForSemanticSegmentation(SpeedBudgetMixin, Reg4PruPreTrainedModel):
    """
    EoMT-DINOv3 for semantic segmentation with token pruning and random token routing (Reg4Pru, arXiv 2602.02163).

    Parameters carry the names of [`~transformers.EomtDinov3ForUniversalSegmentation`], whose checkpoints load as they
    are; selectors and drift corrections are new. Inputs may have any size that is a multiple of the patch size.

    Example:

    ```python
    >>> from modeling_reg4pru import Reg4PruForSemanticSegmentation

    >>> model = Reg4PruForSemanticSegmentation.from_pretrained("user/reg4pru-vits16-fives").eval()
    >>> model.set_keep_rates(0.5)
    >>> vessel_probability = model(pixel_values).logits.softmax(1)[:, 1]
    ```
    """

    def __init__(self, config: Reg4PruConfig):
        config.validate()  # fields overridden in from_pretrained have not been seen by the validators yet
        super().__init__(config)
        self.num_prefix_tokens = config.num_prefix_tokens
        self.embeddings = Reg4PruEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.rope_embeddings = Reg4PruRotaryEmbedding(config)
        self.query = nn.Embedding(config.num_queries, config.hidden_size)
        self.layers = nn.ModuleList([Reg4PruLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.selectors = nn.ModuleList([SELECTOR_CLASSES[config.selector](config) for _ in config.pruning_layers])
        self.selectors_learn = config.selectors_learn
        self.selectors.requires_grad_(self.selectors_learn)  # DDP waits for every gradient that could come
        corrected = config.pruning_layers if config.drift_correction else ()
        self.drift_corrections = nn.ModuleList(DriftCorrection(config) for _ in corrected)
        self.upscale_block = Reg4PruScaleBlock(config)
        self.mask_head = EomtDinov3MaskHead(config)
        self.class_predictor = None if config.is_binary else nn.Linear(config.hidden_size, config.num_labels + 1)
        self.criterion = BinaryMaskLoss(config) if config.is_binary else SetMaskLoss(config)
        self.gradient_checkpointing = False  # `gradient_checkpointing_enable` sets it
        # Probability that EoMT's query-to-patch mask applies, by query layer; annealed from 1 to 0 in training.
        self.attn_mask_probs = nn.Buffer(torch.ones(config.num_blocks))
        self._learns_masked = False  # with masks that nobody has annealed
        self._annealing_is_known = False

        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    def set_keep_rates(self, keep_rates: float | Sequence[float] | None) -> None:
        """
        Change the keep rates of a loaded model; no retraining, and `save_pretrained` stores them.

        Args:
            keep_rates (`float`, sequence of `float` or `None`): One rate for all stages or one per stage, each in
                (0, 1]. `None` switches pruning off, and random routing in training: the model is dense.

        Raises:
            `ValueError`: for a rate outside (0, 1] or a sequence of another length than there are stages.
        """
        rates = expand_keep_rates(keep_rates, self.config.num_stages)
        self.config.keep_rates = None if keep_rates is None else list(rates)

    def set_mask_annealing(self, progress: float) -> None:
        """Anneal EoMT's masked attention, for the fraction of training that has passed; see [`mask_probability`]."""
        self._annealing_is_known = True
        for block in range(self.config.num_blocks):
            self.attn_mask_probs[block] = mask_probability(block, self.config.num_blocks, progress)

    def train(self, mode: bool = True) -> "Reg4PruForSemanticSegmentation":
        """[`~torch.nn.Module.train`]; when it ends, warns of masked attention that was never annealed."""
        if not mode and self._learns_masked and not self._annealing_is_known and self.attn_mask_probs.any():
            self._annealing_is_known = True  # said once
            logger.warning(
                "This model has learned with masked attention (`masked_attention=True`), and is measured without it: "
                "call `set_mask_annealing` before every training step, or set `masked_attention=False`."
            )
        return super().train(mode)

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """[`~transformers.PreTrainedModel.save_pretrained`]; every Auto class that fits finds the saved code."""
        if self._auto_class is not None:  # else no code is saved
            reference = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
            # transformers itself adds one only, the one that this model was loaded with last.
            self.config.auto_map = dict.fromkeys(("AutoModel", "AutoModelForSemanticSegmentation"), reference)
            self.config.custom_pipelines = CUSTOM_PIPELINES
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, output_loading_info: bool = False, **kwargs
    ) -> "Reg4PruForSemanticSegmentation":
        """
        [`~transformers.PreTrainedModel.from_pretrained`], which takes EoMT checkpoints, too, on DINOv2 (`eomt`) and
        on DINOv3 (`eomt_dinov3`).

        Raises:
            `ValueError`: If the checkpoint lacks weights other than those of the selectors and of the class head:
                they would be random, and nothing would tell.
        """
        name, kwargs = pretrained_model_name_or_path, with_dtype(kwargs)
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        model_type = None if name is None else cls.config_class.get_config_dict(name, **hub)[0].get("model_type")
        if model_type == "eomt" and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = read_eomt(name, **hub)
            if "config" not in kwargs:
                config, kwargs = cls.config_class.from_pretrained(name, return_unused_kwargs=True, **kwargs)
                kwargs["config"] = config
            kwargs, name = {key: value for key, value in kwargs.items() if key not in hub}, None
        model, loading = super().from_pretrained(name, *model_args, output_loading_info=True, **kwargs)
        check_loading(loading["missing_keys"], pretrained_model_name_or_path)
        model.selectors.requires_grad_(model.selectors_learn)  # loading puts new parameters in place of the old ones
        model._remember_source(pretrained_model_name_or_path, **hub)
        if model_type in ("eomt", "eomt_dinov3") and model.attn_mask_probs.any():
            logger.warning(
                "%s masks the attention of its queries at inference, too, in transformers (`attn_mask_probs` above "
                "0). Here they are never masked at inference, so its results differ.",
                pretrained_model_name_or_path,
            )
        return (model, loading) if output_loading_info else model

    @classmethod
    def from_backbone(
        cls, checkpoint: str, config: Reg4PruConfig | None = None, **kwargs
    ) -> "Reg4PruForSemanticSegmentation":
        """
        A model whose embeddings, layers and final norm come from a plain vision transformer; everything else is new.

        Args:
            checkpoint (`str`): Hub id or folder of a DINOv3, DINOv2 (with or without registers), ViT or MAE model of
                transformers, of a timm model of these families, or a file of RETFound's form; see
                [`~modeling_reg4pru.backbone_loading.read_backbone`].
            config (`Reg4PruConfig`, *optional*): Its architecture must be the checkpoint's. Unset, it is read from
                there.
            kwargs: What `from_pretrained` takes to find a checkpoint (`token`, `revision`, `cache_dir`, `subfolder`,
                `local_files_only`, `force_download`) and `dtype` (`torch.dtype`, its name, or `"auto"`: that of the
                checkpoint); and, without `config`, fields of [`Reg4PruConfig`].
                With another `patch_size` the patch kernel is resampled; of fewer layers these are the first ones.

        Raises:
            `ValueError`: for a field that there is not, if `config` describes another architecture than the
                checkpoint has, or if the checkpoint lacks weights.
        """
        kwargs = with_dtype(kwargs)
        dtype = kwargs.pop("dtype", None)
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        unknown = sorted(set(kwargs) - Reg4PruConfig.default_fields() - OTHER_FIELDS)
        if unknown:
            raise ValueError(
                f"from_backbone got {', '.join(unknown)}: neither a field of Reg4PruConfig nor an argument "
                "of from_pretrained."
            )
        if config is not None and kwargs:
            raise ValueError(f"Give either `config` or fields of it, not both: got `config` and {sorted(kwargs)}.")
        backbone = read_backbone(checkpoint, **hub)
        if config is None:
            config = Reg4PruConfig(**{**backbone.guesses, **backbone.fields, **kwargs})
        check_backbone(config, backbone, checkpoint)
        model = cls(config)
        load_backbone(model, backbone, dtype)
        return model

    @capture_outputs
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        keep_rates: float | Sequence[float] | str | None = "config",
        output_keep_masks: bool = False,
        output_token_ids: bool = False,
        patch_offsets: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Reg4PruSemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Normalised images; height and width are multiples of the patch size.
            labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*):
                Class of every pixel, or `semantic_loss_ignore_index`.
            keep_rates (`float`, sequence of `float` or `None`, *optional*, defaults to `"config"`):
                Keep rates of this call, as in [`~Reg4PruForSemanticSegmentation.set_keep_rates`]: `None` switches
                pruning off, and random routing in training. `"config"`: those of the configuration.
            output_keep_masks (`bool`, *optional*, defaults to `False`):
                Whether to return which tokens were active after each stage.
            output_token_ids (`bool`, *optional*, defaults to `False`):
                Whether to return the ids of the patch tokens that each layer ran on.
            patch_offsets (`torch.Tensor` of shape `(batch, 9)`, *optional*):
                Where tiles lie in their images, as the image processor says it; handed on to post-processing.
            pixel_mask (`torch.Tensor` of shape `(batch, height, width)`, *optional*):
                0 where images show nothing, as outside the field of view of a fundus image; with `patch_offsets`. No
                loss counts these pixels, and post-processing takes them for background. At inference with
                `allocation="image"` no layer computes patches of nothing else, and keep rates are those of the rest;
                with `"tile"` they are the first to be pruned.
            output_hidden_states, output_attentions (`bool`, *optional*):
                Whether to return them, by layer, for the tokens that the layer ran on; attentions need
                `attn_implementation="eager"`. Read by `capture_outputs`. There are no other keyword arguments: a typo
                is an error, and Trainer would take `**kwargs` as a promise to normalise over accumulated batches.

        Raises:
            `ValueError`: for images whose sides are no multiple of the patch size, labels of another size than the
            images, or keep rates that do not fit.
        """
        grid_size = check_inputs(self.config, pixel_values, labels)
        check_pixel_mask(pixel_mask, pixel_values, patch_offsets)
        labels = hide_labels(labels, pixel_mask, self.config.semantic_loss_ignore_index)
        if self.training:
            check_selectors(self.config, self.selectors_learn)
            self._learns_masked = self.config.masked_attention
        if isinstance(keep_rates, str) and keep_rates == "config":
            keep_rates = self.config.keep_rates
        if self.training and labels is not None:
            warn_of_untaught_selectors(self.config, keep_rates)
        tokens = follow_tokens(
            self, grid_size, keep_rates, labels, patch_offsets, output_keep_masks, output_token_ids, pixel_mask
        )
        states = self.dropout(self.embeddings(pixel_values))
        states = tokens.begin(states, self.rope_embeddings(pixel_values.to(states.dtype)))

        for index, layer in enumerate(self.layers):
            states = tokens.before(index, states)
            states = layer(states, *tokens.positions, tokens.policy, tokens.query_mask, tokens.tile_lengths)
            states = tokens.after(index, states)

        mask_logits, class_logits = self.predict(*tokens.end(states), grid_size)
        loss_parts = None if labels is None else self._loss_parts(mask_logits, class_logits, labels, tokens)
        return Reg4PruSemanticSegmenterOutput(
            loss=None if labels is None else sum(loss_parts.values()),
            logits=semantic_logits(mask_logits, class_logits),
            loss_parts=loss_parts,
            masks_queries_logits=mask_logits,
            class_queries_logits=class_logits,
            patch_offsets=patch_offsets,
            pixel_mask=pixel_mask,
            **tokens.outputs(),
        )

    def predict(
        self, queries: torch.Tensor, patches: torch.Tensor, grid_size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        EoMT's heads, on the full grid.

        Args:
            queries (`torch.Tensor` of shape `(batch, num_queries, hidden_size)`): Query tokens before the final norm.
            patches (`torch.Tensor` of shape `(batch, num_patches, hidden_size)`): Patch tokens, likewise.
            grid_size (`tuple[int, int]`): Rows and columns of patches.

        Returns:
            `tuple`: mask logits `(batch, num_queries, map_height, map_width)` and class logits
            `(batch, num_queries, num_labels + 1)`, `None` in the binary case.
        """
        queries = self.layernorm(queries)
        features = self.layernorm(patches).transpose(1, 2).unflatten(2, grid_size)
        mask_logits = query_masks(self.mask_head(queries), features, self.upscale_block)
        return mask_logits, None if self.class_predictor is None else self.class_predictor(queries)

    def _loss_parts(
        self, mask_logits: torch.Tensor, class_logits: torch.Tensor | None, labels: torch.Tensor, tokens: TokenPruning
    ) -> dict[str, torch.Tensor]:
        """Every weighted part of the loss; the parts of the masks are summed over the layers that predict."""
        parts: dict[str, torch.Tensor] = {}
        for prediction in (*tokens.early_predictions, (mask_logits, class_logits)):
            for name, loss in self.criterion(*prediction, labels).items():
                parts[name] = parts.get(name, 0.0) + loss
        if tokens.budget_losses:
            parts["loss_budget"] = self.config.budget_loss_weight * torch.stack(tokens.budget_losses).mean()
        if tokens.foreground_losses:
            parts["loss_selector"] = self.config.selector_loss_weight * torch.stack(tokens.foreground_losses).mean()
        return parts


__all__ = ["Reg4PruForSemanticSegmentation", "Reg4PruPreTrainedModel"]
