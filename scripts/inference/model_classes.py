"""The classes that a model tells apart, and what follows from them."""

from datasets import Dataset

from datasets_fives.class_names import class_names
from modeling_reg4pru import Reg4PruConfig

VESSEL_CLASSES = ["background", "vessel"]


def model_classes(config: Reg4PruConfig) -> list[str]:
    """
    Names of the classes, in the order of their indices; of two that have none, as in checkpoints of other libraries,
    [`VESSEL_CLASSES`].
    """
    names = [config.id2label[index] for index in range(config.num_labels)]
    return VESSEL_CLASSES if len(names) == 2 and not _has_names(config) else names


def is_of_vessels(config: Reg4PruConfig) -> bool:
    """Whether a model finds vessels in fundus images: there is a field of view, and nothing counts outside."""
    return model_classes(config) == VESSEL_CLASSES


def check_same_classes(config: Reg4PruConfig, rows: Dataset, source: str) -> None:
    """
    Raises `ValueError` unless a model and the label maps that it is measured on have the same classes in the same
    order; where one side has no names, as vessel masks and some models of two classes do, the same number of them.

    Args:
        config ([`Reg4PruConfig`]): Of the model.
        rows (`Dataset`): Images with masks or label maps.
        source (`str`): What the message calls the data set.
    """
    own, data = model_classes(config), class_names(rows)
    named = "classes" in rows.features and _has_names(config)
    if (own != data) if named else (len(own) != len(data)):
        raise ValueError(
            f"The model and {source} have other classes, or the same in another order. Model: {', '.join(own)}. Data: "
            f"{', '.join(data)}."
        )


def check_skip_applies(skip_outside: bool, config: Reg4PruConfig) -> None:
    """Raises `ValueError` if `--skip_outside` is given for images without a circular field of view."""
    if skip_outside and not is_of_vessels(config):
        raise ValueError(
            "--skip_outside finds the circular field of view of fundus images, but this model segments "
            f"{', '.join(model_classes(config))}. In Python `predict_image(..., pixel_mask=...)` takes any mask."
        )


def check_threshold_applies(threshold: float, config: Reg4PruConfig) -> None:
    """Raises `ValueError` for a threshold other than one half where there are more than two classes."""
    if config.num_labels > 2 and threshold != 0.5:
        raise ValueError(
            f"--threshold is {threshold}, but the model tells {config.num_labels} classes apart "
            f"({', '.join(model_classes(config))}): a pixel is of the most probable one."
        )


def _has_names(config: Reg4PruConfig) -> bool:
    return any(config.id2label[index] != f"LABEL_{index}" for index in range(config.num_labels))
