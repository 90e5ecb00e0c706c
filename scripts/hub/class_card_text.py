"""What a model card says of a model of more than two classes."""

from ..reporting.class_evaluation import HEADINGS, iou_by_class
from ..reporting.tables import format_number, markdown_table


def results_table(results: dict) -> str:
    """The metrics over all pixels, then the IoU of every class, by keep rate; empty without results."""
    if not results:
        return ""
    lines = [["keep rate per stage", *HEADINGS.values()]]
    lines += [[rate, *(format_number(result[metric]) for metric in HEADINGS)] for rate, result in results.items()]
    classes = [["IoU of the class", *results]]
    for name, values in iou_by_class(results).items():
        classes.append([name, *(format_number(values[rate]) for rate in results)])
    return f"{markdown_table(lines)}\n\n{markdown_table(classes)}"


def what_it_does(names: list[str]) -> str:
    """The first sentence: what classes it tells apart."""
    return f"Segments images into {len(names)} classes ({', '.join(names)})"
