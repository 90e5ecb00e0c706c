"""Losses of the predicted masks: dense ones for a single foreground query, Mask2Former's for many queries."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import EomtDinov3Loss, sample_point

from .configuration_reg4pru import Reg4PruConfig
from .distributed import mean_over_processes

CERTAIN = 1e4  # a logit far from the decision boundary


class BinaryMaskLoss(nn.Module):
    """
    Binary cross entropy and Dice loss of the single foreground mask, at the resolution of the labels.

    Modifications: EoMT samples points for its mask loss because it has hundreds of masks; with one mask every pixel
    can count, which thin vessels need.
    """

    def __init__(self, config: Reg4PruConfig):
        super().__init__()
        self.ignore_index = config.semantic_loss_ignore_index
        self.mask_weight = config.mask_weight
        self.dice_weight = config.dice_weight

    def forward(self, mask_logits: torch.Tensor, class_logits: None, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            mask_logits (`torch.Tensor` of shape `(batch, 1, map_height, map_width)`): Logits of the foreground.
            labels (`torch.Tensor` of shape `(batch, height, width)`): 1 foreground, 0 background, or the ignore index.

        Returns:
            `dict`: the weighted `loss_mask` and `loss_dice`.
        """
        logits = F.interpolate(mask_logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        logits = logits[:, 0]
        valid = (labels != self.ignore_index).float()
        target = (labels == 1).float()
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, weight=valid, reduction="sum")
        num_valid = mean_over_processes(valid.sum()) if self.training else valid.sum()
        probability = logits.sigmoid() * valid
        overlap = (probability * target).sum(dim=(1, 2))
        total = probability.sum(dim=(1, 2)) + target.sum(dim=(1, 2))
        return {
            "loss_mask": self.mask_weight * cross_entropy / num_valid.clamp_min(1),
            "loss_dice": self.dice_weight * (1 - (2 * overlap + 1) / (total + 1)).mean(),
        }


class SetMaskLoss(EomtDinov3Loss):
    """
    Mask2Former's loss as EoMT uses it, on semantic label maps.

    Modifications: takes `labels` instead of lists of masks, and leaves ignored pixels out of the mask losses.
    """

    def __init__(self, config: Reg4PruConfig):
        weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        super().__init__(config=config, weight_dict=weights)
        self.ignore_index = config.semantic_loss_ignore_index

    def forward(
        self, mask_logits: torch.Tensor, class_logits: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            mask_logits (`torch.Tensor` of shape `(batch, num_queries, map_height, map_width)`): Mask of every query.
            class_logits (`torch.Tensor` of shape `(batch, num_queries, num_labels + 1)`): The last class is "no
                object".
            labels (`torch.Tensor` of shape `(batch, height, width)`): Class of every pixel, or the ignore index.

        Returns:
            `dict`: the weighted `loss_mask`, `loss_dice` and `loss_cross_entropy`.
        """
        # Cross entropy wants one type for logits and class weights, and the latter turn into that of the model.
        mask_logits, class_logits = mask_logits.float(), class_logits.to(self.empty_weight.dtype)
        labels = labels.long()  # classes index what they are matched with
        class_labels = [classes[classes != self.ignore_index] for classes in map(torch.unique, labels)]
        mask_labels = [
            (label == classes[:, None, None]).float() for label, classes in zip(labels, class_labels, strict=True)
        ]
        if sum(len(classes) for classes in class_labels) == 0:
            self.get_num_masks(class_labels, labels.device)  # every process takes part in this count
            nothing = 0.0 * (mask_logits.sum() + class_logits.sum())
            return dict.fromkeys(self.weight_dict, nothing)
        self._valid = (labels != self.ignore_index).float()[:, None]
        # Where all pixels below a logit are ignored, 0 stands for every query: nothing there decides the matching.
        self._ignored = F.adaptive_max_pool2d(self._valid, mask_logits.shape[-2:]) == 0
        mask_logits = mask_logits.masked_fill(self._ignored, 0.0)
        losses = super().forward(mask_logits, class_logits, mask_labels, class_labels)
        return {name: self.weight_dict[name] * loss for name, loss in losses.items()}

    def loss_masks(self, masks_queries_logits, mask_labels, indices, num_masks):
        predicted = self._get_predictions_permutation_indices(indices)
        wanted = self._get_targets_permutation_indices(indices)
        logits = masks_queries_logits[predicted][:, None]
        targets = self._pad_images_to_max_in_batch(mask_labels)[0][wanted][:, None]
        with torch.no_grad():
            points = self.sample_points_using_uncertainty(
                logits.masked_fill(self._ignored[predicted[0]], CERTAIN),  # no points wasted on ignored pixels
                self.calculate_uncertainty,
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            point_targets = sample_point(targets, points, align_corners=False).squeeze(1)
            point_valid = sample_point(self._valid[predicted[0]], points, mode="nearest", align_corners=False).squeeze(
                1
            )
        point_logits = sample_point(logits, points, align_corners=False).squeeze(1)
        return masked_point_losses(point_logits, point_targets, point_valid, num_masks)


def masked_point_losses(
    logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor, num_masks: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    Mask2Former's cross entropy and Dice loss over sampled points (arXiv 2112.01527, Sec. 3.3), of which only the valid
    ones count. All inputs but the last have shape `(num_matched_masks, num_points)`.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, weight=valid, reduction="none").sum(1)
    probability, targets = logits.sigmoid() * valid, targets * valid
    dice = 1 - (2 * (probability * targets).sum(1) + 1) / (probability.sum(1) + targets.sum(1) + 1)
    return {
        "loss_mask": (cross_entropy / valid.sum(1).clamp_min(1)).sum() / num_masks,
        "loss_dice": dice.sum() / num_masks,
    }
