"""
How far a checkpoint, at the keep rates of the tables, agrees with another one unpruned, on the test images of FIVES.

    python -m reg4pru.pruning.agreement_with runs/dense/seed-0/last default/seed-0 path/to/fives out.json

The report of `reg4pru prune` has this for what it made of a dense model; this is for a training of its own.
"""

import json
import sys
from pathlib import Path

from datasets_fives import load_vessels
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from ..common.atomic_files import replace_text
from ..common.keep_rates import rate_name
from ..common.provenance import provenance
from ..reporting.agreement import RATES
from .agreement import Reported, measure_agreement


def main(dense: str, model: str, fives: str, output: Path) -> None:
    """Write `mean_iou` by keep rate, and what made it."""
    base, other = (Reg4PruForSemanticSegmentation.from_pretrained(path).eval() for path in (dense, model))
    processor = Reg4PruImageProcessor.from_pretrained(model)
    rows = load_vessels(fives, split="sample", working_size=processor.working_size)["test"]
    reported = Reported([row["image"] for row in rows])
    _, found = measure_agreement(base, {"other": other}, processor, reported, {"other": RATES})
    agreement = {rate_name(rate): row["mean_iou"] for rate, row in found["other"].items()}
    content = {"mean_iou": agreement, "num_images": len(rows), "provenance": provenance(base.device)}
    replace_text(output, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:4], Path(sys.argv[4]))
