"""Reg4Pru: an EoMT-DINOv3 segmentation model that drops tokens, and learns in training to read stale ones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers import logging
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import (
    EomtDinov3MaskHead,
    EomtDinov3PreTrainedModel,
    EomtDinov3ScaleBlock,
)
from transformers.utils.output_capturing import capture_outputs

from .backbone_loading import HUB_ARGUMENTS, check_backbone, check_loading, load_backbone, read_backbone, read_eomt
from .configuration_reg4pru import OTHER_FIELDS, Reg4PruConfig, expand_keep_rates
from .drift_correction import DriftCorrection, ZeroLinear
from .input_checks import check_inputs, check_selectors
from .modeling_outputs_reg4pru import Reg4PruSemanticSegmenterOutput
from .pipeline_reg4pru import CUSTOM_PIPELINES
from .policy_attention import Reg4PruAttention
from .segmentation_head import allowed_patches, mask_probability, query_masks, semantic_logits
from .segmentation_loss import BinaryMaskLoss, SetMaskLoss
from .speed_budget import SpeedBudgetMixin
from .token_bank import TokenBank, draw_routing_window, gather_tokens
from .token_pruning import StageSelection, drift_loss
from .token_selectors import SELECTOR_CLASSES, keep_count, special_tokens
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
        self.upscale_block = EomtDinov3ScaleBlock(config)
        self.mask_head = EomtDinov3MaskHead(config)
        self.class_predictor = None if config.is_binary else nn.Linear(config.hidden_size, config.num_labels + 1)
        self.criterion = BinaryMaskLoss(config) if config.is_binary else SetMaskLoss(config)
        self.gradient_checkpointing = False  # `gradient_checkpointing_enable` sets it
        # A recipe may begin dense: while this is off, training steps neither prune nor route.
        self.prunes_in_training = True
        # Probability that EoMT's query-to-patch mask applies, by query layer; annealed from 1 to 0 in training.
        self.attn_mask_probs = nn.Buffer(torch.ones(config.num_blocks))

        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    def set_keep_rates(self, keep_rates: float | Sequence[float] | None) -> None:
        """
        Change the keep rates of a loaded model; no retraining, and `save_pretrained` stores them.

        Args:
            keep_rates (`float`, sequence of `float` or `None`): One rate for all stages or one per stage, each in
                (0, 1]. `None` switches pruning off.

        Raises:
            `ValueError`: for a rate outside (0, 1] or a sequence of another length than there are stages.
        """
        self.config.keep_rates = list(expand_keep_rates(keep_rates, self.config.num_stages))

    def set_mask_annealing(self, progress: float) -> None:
        """Anneal EoMT's masked attention, for the fraction of training that has passed; see [`mask_probability`]."""
        for block in range(self.config.num_blocks):
            self.attn_mask_probs[block] = mask_probability(block, self.config.num_blocks, progress)

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
        name = pretrained_model_name_or_path
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
        dtype = kwargs.pop("dtype", None)
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        unknown = sorted(set(kwargs) - Reg4PruConfig.default_fields() - OTHER_FIELDS)
        if unknown:
            raise ValueError(f"from_backbone got {', '.join(unknown)}: no field of Reg4PruConfig, no way to load.")
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
        keep_rates: float | Sequence[float] | None = None,
        output_keep_masks: bool = False,
        output_token_ids: bool = False,
        patch_offsets: torch.Tensor | None = None,
        dense_states: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Reg4PruSemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Normalised images; height and width are multiples of the patch size.
            labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*):
                Class of every pixel, or `semantic_loss_ignore_index`.
            keep_rates (`float` or sequence of `float`, *optional*):
                Keep rates of this call; defaults to those of the configuration.
            output_keep_masks (`bool`, *optional*, defaults to `False`):
                Whether to return which tokens were active after each stage.
            output_token_ids (`bool`, *optional*, defaults to `False`):
                Whether to return the ids of the patch tokens that each layer ran on.
            patch_offsets (`torch.Tensor` of shape `(batch, 8)`, *optional*):
                Where tiles lie in their images, as the image processor says it; handed on to post-processing.
            dense_states (`torch.Tensor` of shape `(batch, num_tokens, hidden_size)`, *optional*):
                States after the reactivation layer in a pass that prunes nothing, for the drift corrections to learn
                from.
            output_hidden_states, output_attentions (`bool`, *optional*):
                Whether to return them, by layer, for the tokens that the layer ran on; attentions need
                `attn_implementation="eager"`. Read by `capture_outputs`. There are no other keyword arguments: a typo
                is an error, and Trainer would take `**kwargs` as a promise to normalise over accumulated batches.

        Raises:
            `ValueError`: for images whose sides are no multiple of the patch size, labels of another size than the
            images, or keep rates that do not fit.
        """
        config = self.config
        grid_size = check_inputs(config, pixel_values, labels, dense_states)
        rates = expand_keep_rates(config.keep_rates if keep_rates is None else keep_rates, config.num_stages)
        pruning = "hard"
        if self.training:
            check_selectors(config, self.selectors_learn)
            pruning = config.train_pruning if self.prunes_in_training else "none"
        selection = StageSelection(config, rates, grid_size, pruning, self.training, labels, output_keep_masks)
        selectors = dict(zip(config.pruning_layers, self.selectors, strict=True))
        routes = self.training and self.prunes_in_training and config.routing
        window = draw_routing_window(config) if routes else (None, None)

        hidden_states = self.dropout(self.embeddings(pixel_values))
        rope = self.rope_embeddings(pixel_values.to(hidden_states.dtype))  # cos and sin, (num_patches, head_dim)
        num_special = config.num_prefix_tokens  # tokens before the patch tokens: prefix, later also queries
        bank = TokenBank(hidden_states[:, num_special:])
        positions = bank.follow_positions(rope)
        predictions, token_counts, token_ids, drift = [], [], [], None

        for index, layer in enumerate(self.layers):
            if index == config.first_query_layer:
                queries = self.query.weight[None].expand(hidden_states.shape[0], -1, -1)
                hidden_states = torch.cat((queries.to(hidden_states), hidden_states), dim=1)
                num_special += config.num_queries

            # Tokens are removed after layer s_j of stage j. A policy gates attention from this layer on, so a selector
            # that learns through one scores its input.
            kept_ids, selector = None, selectors.get(index)
            if selector is not None and not selector.scores_output:
                kept_ids = selection.decide(index, selector, bank, hidden_states[:, num_special:])

            query_mask = None
            if self.training and config.masked_attention and index >= config.first_query_layer:
                bank.write(hidden_states[:, num_special:])
                predictions.append(self._predict_early(hidden_states[:, : config.num_queries], bank.states, grid_size))
                if bank.routed_ids is None:  # inside a routing window the mask is off
                    query_mask = self._query_mask(predictions[-1][0], bank, num_special, grid_size, index)

            policy = selection.sequence_policy(bank, num_special)
            hidden_states = layer(hidden_states, *positions, policy, query_mask)
            hidden_states = hidden_states.to(bank.states.device)  # `device_map` may put layers on several devices
            if selector is not None and selector.scores_output:
                kept_ids = selection.decide(index, selector, bank, hidden_states[:, num_special:])
            selection.end_layer()
            token_counts.append(hidden_states.shape[1])
            if output_token_ids:
                token_ids.append(bank.list_ids())
            if self._moves_tokens(index, kept_ids, window, bank):
                bank.write(hidden_states[:, num_special:])
                if index == config.reactivation_layer and dense_states is not None and bank.changes is not None:
                    drift = drift_loss(bank, dense_states[:, num_special:])
                self._move_tokens(index, kept_ids, window, bank)
                positions = bank.follow_positions(rope)
                hidden_states = torch.cat((hidden_states[:, :num_special], bank.read()), dim=1)

        predictions.append(
            self._predict(hidden_states[:, : config.num_queries], hidden_states[:, num_special:], grid_size)
        )
        mask_logits, class_logits = predictions[-1]
        loss_parts = None if labels is None else self._loss_parts(predictions, labels, selection, drift)
        return Reg4PruSemanticSegmenterOutput(
            loss=None if labels is None else sum(loss_parts.values()),
            logits=semantic_logits(mask_logits, class_logits),
            loss_parts=loss_parts,
            budget_loss=torch.stack(selection.budget_losses).mean() if selection.budget_losses else None,
            token_counts=torch.tensor(token_counts, device=hidden_states.device),
            token_ids=tuple(token_ids) or None,
            keep_masks=torch.stack(selection.keep_masks, dim=1) if selection.keep_masks else None,
            masks_queries_logits=mask_logits,
            class_queries_logits=class_logits,
            patch_offsets=patch_offsets,
        )

    def _moves_tokens(
        self, index: int, kept_ids: torch.Tensor | None, window: tuple[int | None, int | None], bank: TokenBank
    ) -> bool:
        """Whether tokens leave the sequence or come back after a layer."""
        reactivates = index == self.config.reactivation_layer and bank.kept_ids is not None
        return kept_ids is not None or reactivates or index in window

    def _move_tokens(
        self, index: int, kept_ids: torch.Tensor | None, window: tuple[int | None, int | None], bank: TokenBank
    ) -> None:
        """What happens to the tokens after a layer: pruning, reactivation, the two ends of the routing window."""
        config = self.config
        if kept_ids is not None and self.drift_corrections:
            correction = self.drift_corrections[config.pruning_layers.index(index)]
            nested = config.selection_pool == "active" and bank.routed_ids is None
            leaving_ids = bank.leaving_ids(kept_ids, nested)
            changes = correction(gather_tokens(bank.states, leaving_ids)).to(bank.states.device)
            bank.prune(kept_ids, leaving_ids, changes)
        elif kept_ids is not None:
            bank.prune(kept_ids)
        if index == config.reactivation_layer:
            bank.reactivate()
        if index == window[0]:
            special = special_tokens(config, *window)
            bank.route(keep_count(config.routing_keep_rate, bank.num_kept, special, config.token_multiple))
        if index == window[1]:
            bank.rejoin()

    def _predict(
        self, queries: torch.Tensor, patches: torch.Tensor, grid_size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        EoMT's heads, on the full grid.

        Args:
            queries (`torch.Tensor` of shape `(batch, num_queries, hidden_size)`): Query tokens before the final norm.
            patches (`torch.Tensor` of shape `(batch, num_patches, hidden_size)`): Patch tokens, likewise.

        Returns:
            `tuple`: mask logits `(batch, num_queries, map_height, map_width)` and class logits
            `(batch, num_queries, num_labels + 1)`, `None` in the binary case.
        """
        queries = self.layernorm(queries)
        features = self.layernorm(patches).transpose(1, 2).unflatten(2, grid_size)
        mask_logits = query_masks(self.mask_head(queries), features, self.upscale_block)
        return mask_logits, None if self.class_predictor is None else self.class_predictor(queries)

    def _predict_early(
        self, queries: torch.Tensor, patches: torch.Tensor, grid_size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        [`_predict`] before a query layer. Under hard pruning its maps are most of what deep supervision keeps for the
        backward pass, so gradient checkpointing computes them anew.
        """
        if not self.gradient_checkpointing:
            return self._predict(queries, patches, grid_size)
        return checkpoint(self._predict, queries, patches, grid_size, use_reentrant=False)

    def _query_mask(
        self, mask_logits: torch.Tensor, bank: TokenBank, num_special: int, grid_size: tuple[int, int], index: int
    ) -> torch.Tensor:
        """
        [`allowed_patches`] for the tokens in the sequence.

        Returns:
            `torch.Tensor` of shape `(batch, num_queries, num_special + num_active)`: True where it may look.
        """
        probability = self.attn_mask_probs[index - self.config.first_query_layer]
        allowed = allowed_patches(mask_logits, grid_size, probability)
        allowed = bank.follow(allowed.transpose(1, 2)).transpose(1, 2)
        return F.pad(allowed, (num_special, 0), value=True)

    def _loss_parts(
        self,
        predictions: list[tuple[torch.Tensor, torch.Tensor | None]],
        labels: torch.Tensor,
        selection: StageSelection,
        drift: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Every weighted part of the loss; the parts of the masks are summed over the layers that predict."""
        parts: dict[str, torch.Tensor] = {}
        for mask_logits, class_logits in predictions:
            for name, loss in self.criterion(mask_logits, class_logits, labels).items():
                parts[name] = parts.get(name, 0.0) + loss
        if selection.budget_losses:
            parts["loss_budget"] = self.config.budget_loss_weight * torch.stack(selection.budget_losses).mean()
        if selection.foreground_losses:
            parts["loss_selector"] = self.config.selector_loss_weight * torch.stack(selection.foreground_losses).mean()
        if drift is not None:
            parts["loss_drift"] = drift
        return parts


__all__ = ["Reg4PruForSemanticSegmentation", "Reg4PruPreTrainedModel"]
