"""Which metrics a study shows: those of vessels, or of more than two classes."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class StudyMetrics(NamedTuple):
    """
    The metrics of the tables and figures of a study.

    Args:
        main (`str`), main_name (`str`): What variants are ranked by.
        second (`str`), second_name (`str`): What is shown beside it.
        raced (`str`), raced_name (`str`): What is shown beside it over the time of an image.
        compared (`dict[str, str]`): Metrics of single images, and their headings.
        pixels (`str`): Which pixels count.
    """

    main: str
    main_name: str
    second: str
    second_name: str
    raced: str
    raced_name: str
    compared: dict[str, str]
    pixels: str

    @property
    def change(self) -> str:
        """What the change of the main metric by pruning is called in tables of numbers."""
        return f"{self.main}_change"

    @property
    def shown(self) -> dict[str, str]:
        """Metrics of `table.md`, and their headings."""
        headings = {
            self.main: self.main_name,
            self.change: f"change of {self.main_name}",
            self.second: self.second_name,
        }
        return {name: heading[0].upper() + heading[1:] for name, heading in headings.items()}


VESSELS = StudyMetrics(
    *("average_precision", "average precision", "dice", "Dice", "cldice", "clDice"),
    compared={"average_precision": "Average precision", "dice": "Dice", "cldice": "clDice"},
    pixels="inside the field of view",
)
CLASSES = StudyMetrics(
    *("mean_iou", "mean IoU", "boundary_iou", "boundary IoU", "boundary_iou", "boundary IoU"),
    compared={"mean_iou": "Mean IoU", "pixel_accuracy": "Pixel accuracy", "boundary_iou": "Boundary IoU"},
    pixels="that have a label",
)


def metrics_of(rows: Iterable[Mapping]) -> StudyMetrics:
    """The metrics of measured rows; those of vessels if there are none yet."""
    return CLASSES if any(CLASSES.main in row for row in rows) else VESSELS
