"""
What `make quick` has shown, in a few sentences, from the files that its commands wrote.

    python -m reg4pru.maintenance.quick outputs/quick
"""

import argparse
import csv
import json
import logging
from pathlib import Path

from ..common.cli import set_up_logging

logger = logging.getLogger(__name__)


def summary(folder: Path) -> str:
    """
    Args:
        folder (`Path`): What `make quick` wrote: `evaluated/metrics.json` and `masks/predictions.csv`, at the keep
            rate 1.0 and at one other.

    Returns:
        `str`: Average precision of both, the part of the tokens that the pruned one computes, and where to look.
    """
    metrics = json.loads((folder / "evaluated" / "metrics.json").read_text(encoding="utf-8"))["results"]
    with (folder / "masks" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (rate,) = (name for name in metrics if name != "1.0")
    precision = {name: metrics[name]["pooled"]["average_precision"] for name in metrics}
    tokens = {name: sum(int(row["num_tokens"]) for row in rows if row["keep_rate"] == name) for name in metrics}
    overlay = min((folder / "masks").glob(f"*_overlay_{rate}.png"))
    return (
        f"A small model was trained from scratch and segmented {metrics[rate]['num_images']} images that it had not "
        f"seen: average precision {precision['1.0']:.3f} unpruned, and {precision[rate]:.3f} when each pruning stage "
        f"keeps {rate} of its tokens, so that the layers compute {tokens[rate] / tokens['1.0']:.0%} of them.\n"
        f"Look at {overlay}, at the same with _1.0, and at {folder / 'evaluated' / 'figure.png'}.\n"
        "Next: `make demo` compares trainings on a pretrained backbone; this model in a browser (pip install "
        f'".[app]"): reg4pru app --model {folder / "run" / "last"}'
    )


def main() -> None:
    """Log the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="What make quick wrote.")
    folder = parser.parse_args().folder
    set_up_logging()
    logger.info("\n%s", summary(folder))


if __name__ == "__main__":
    main()
