"""The model that a training starts with."""

import warnings

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation

from .arguments import ModelArguments, config_fields


def build_model(arguments: ModelArguments) -> Reg4PruForSemanticSegmentation:
    """
    A model from a checkpoint, on a backbone, or from scratch.

    Raises:
        `ValueError`: for fields that [`Reg4PruConfig`] does not have.
    """
    overrides = config_fields(arguments.config_overrides)
    known = set(Reg4PruConfig().to_dict()) | {"num_labels"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"config_overrides has {unknown}, which are no fields of Reg4PruConfig.")
    if arguments.model_name_or_path:
        model = Reg4PruForSemanticSegmentation.from_pretrained(arguments.model_name_or_path, **overrides)
    else:
        overrides.setdefault("id2label", {0: "background", 1: "vessel"})
        if arguments.backbone_name_or_path:
            model = Reg4PruForSemanticSegmentation.from_backbone(arguments.backbone_name_or_path, **overrides)
        else:
            model = Reg4PruForSemanticSegmentation(Reg4PruConfig(**overrides))
    if arguments.gradient_checkpointing:
        with warnings.catch_warnings():  # transformers 5.23 warns of the only name that 5.17 has
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable()
    return model
