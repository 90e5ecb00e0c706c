"""What is measured of quality. Imports no data sets: tables are also made where there are none."""

# Names and headings; the first is what engines and keep rates are compared by.
QUALITIES = {"average_precision": "AP", "dice": "Dice", "cldice": "clDice"}
# Of more than two classes.
CLASS_QUALITIES = {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy", "boundary_iou": "boundary IoU"}


def qualities_of(row: dict) -> dict[str, str]:
    """The qualities of a measured row."""
    return CLASS_QUALITIES if "mean_iou" in row else QUALITIES
