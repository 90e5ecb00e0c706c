"""
How far a checkpoint, at the keep rates of the tables, agrees with another one unpruned, on the test images of FIVES.

    FIVES_DIR=path/to/fives python -m reg4pru.maintenance.agreement_with runs/dense/seed-0/last default/seed-0 out.json

The report of `reg4pru prune` has this for what it made of a dense model; this is for a model with a training of its own.
"""

import json
import os
import sys
from pathlib import Path

from datasets_fives import load_vessels
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from ..common.atomic_files import replace_text
from ..common.keep_rates import rate_name
from ..common.provenance import provenance
from ..pruning.agreement import Reported, measure_agreement
from .pruning_levels import RATES


def main(dense: str, model: str, output: Path) -> None:
    """Write `mean_iou` by keep rate, and what made it."""
    base, other = (Reg4PruForSemanticSegmentation.from_pretrained(path).eval() for path in (dense, model))
    processor = Reg4PruImageProcessor.from_pretrained(model)
    rows = load_vessels(os.environ["FIVES_DIR"], split="sample", working_size=processor.working_size)["test"]
    reported = Reported([row["image"] for row in rows])
    _, found = measure_agreement(base, {"other": other}, processor, reported, {"other": RATES})
    agreement = {rate_name(rate): row["mean_iou"] for rate, row in found["other"].items()}
    content = {"mean_iou": agreement, "num_images": len(rows), "provenance": provenance(base.device)}
    replace_text(output, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
