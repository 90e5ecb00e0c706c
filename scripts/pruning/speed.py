"""The tuned front of a pruned checkpoint (`speed.json`), from the times of its report."""

import json
from pathlib import Path

from PIL import Image

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.speed_budget import SPEED_FILE, accuracy, describe_machine

from ..common.atomic_files import replace_text


def write_speed(
    folder: Path,
    model: Reg4PruForSemanticSegmentation,
    processor: Reg4PruImageProcessor,
    image: Image.Image,
    results: dict,
) -> None:
    """
    Write what `set_speed_budget` chooses from: time and quality at the keep rates of the report. Quality is that by
    labels, and where there are none agreement with the unpruned prediction. `reg4pru tune` measures more settings.

    Args:
        folder (`Path`): The checkpoint.
        model ([`Reg4PruForSemanticSegmentation`]), processor ([`Reg4PruImageProcessor`]): Those in it.
        image (`PIL.Image.Image`): One of the report, for its size.
        results (`dict`): The report.
    """
    config, tiles = model.config, processor.cut_image(image)
    dense = results["dense"]
    measured = dict(list(results["agreement"].values())[-1])
    if 1.0 not in measured:  # it predicts what the dense one predicts
        measured[1.0] = {"milliseconds": dense["milliseconds"], "mean_iou": 1.0, "labels": dense.get("labels")}
    settings = {
        "reactivation_layer": config.reactivation_layer,
        "selection_pool": config.selection_pool,
        "allocation": config.allocation,
    }
    rows = [
        {
            "keep_rates": [rate] * config.num_stages,
            **settings,
            "milliseconds": row["milliseconds"],
            "ratio": dense["milliseconds"] / row["milliseconds"],
            **(row.get("labels") or {"mean_iou": row["mean_iou"]}),
        }
        for rate, row in sorted(measured.items(), reverse=True)
    ]
    arguments, reported_on = results["arguments"], results["num_images"]["reported_on"]
    speed = {
        "provenance": results["provenance"],
        "settings": {"dataset": arguments["dataset"] or " ".join(arguments["images"])},
        "data": {"fingerprint": results["fingerprint"], "images": {"validation": reported_on}},
        "quality": "accuracy" if "labels" in dense else "agreement with the unpruned prediction",
        "machine": describe_machine(model.device, model.dtype),
        "image_size": [processor.size["height"], processor.size["width"]],
        "frame_size": tiles.patch_offsets[0, 4:6].tolist(),
        "batch_size": 4,
        "tiles_per_image": len(tiles),
        "weights": results["weights"],
        "num_layers": config.num_hidden_layers,
        "checkpoint": {"keep_rates": config.keep_rates, **settings},
        "candidates": [{**row, "on_front": not any(_beats(other, row) for other in rows)} for row in rows],
    }
    content = json.loads(json.dumps(speed), parse_constant=lambda constant: None)  # JSON knows no nan
    replace_text(folder / SPEED_FILE, json.dumps(content, indent=1) + "\n")


def _beats(other: dict, row: dict) -> bool:
    """Whether a setting is faster, and no less accurate."""
    return other["milliseconds"] < row["milliseconds"] and accuracy(other) >= accuracy(row)
