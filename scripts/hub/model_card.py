"""The card of a checkpoint, rendered from the JSON files that the commands wrote: no number in it is typed by hand."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from safetensors import safe_open

from ..inference.model_classes import VESSEL_CLASSES
from ..reporting.class_evaluation import HEADINGS
from . import card_text, class_card_text

TEMPLATE = Path(__file__).resolve().parent / "card_template.md"
RESULT_METRICS = {"average_precision": "AP", "dice": "Dice", "iou": "IoU", "cldice": "clDice"}
# Beginning of the Hub id of a base model → its licence.
BASE_LICENCES = {"facebook/dinov2-": "apache-2.0"}


def hub_id(name: str | None) -> str | None:
    """`name` if it is a Hub id and no local folder, else `None`."""
    is_id = name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".") and not Path(name).exists()
    return name if is_id else None


def measured_id(metrics: dict, dataset_id: str | None) -> str | None:
    """
    Hub id of the data set that `metrics.json` was measured on: `dataset_id` if it is given; `None` if the data set is
    not on the Hub.
    """
    source = metrics["settings"]["dataset"]
    return None if source == "synthetic" else dataset_id or hub_id(source)


def read_checkpoint(folder: Path) -> tuple[dict, int]:
    """The configuration of a checkpoint, and the number of its parameters."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (no mapping)
                size = 1
                for side in weights.get_slice(name).get_shape():
                    size *= side
                count += size
    return config, count


def render_card(
    config: dict,
    num_parameters: int,
    repo_id: str,
    *,
    train_results: dict | None = None,
    metrics: dict | None = None,
    benchmark: dict | None = None,
    tuned: dict | None = None,
    pruned: dict | None = None,
    dataset_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    figure: str | None = None,
    class_figure: str | None = None,
) -> ModelCard:
    """
    Render the card of a checkpoint, with metadata for the Hub.

    Args:
        config (`dict`): Content of its `config.json`.
        num_parameters (`int`): Number of its parameters.
        repo_id (`str`): Repository of the checkpoint, `"user/name"`.
        train_results (`dict`, *optional*): `train_results.json` of `reg4pru train` or `finetune`.
        metrics (`dict`, *optional*): `metrics.json` of `reg4pru evaluate`.
        benchmark (`dict`, *optional*): `benchmark.json` of `reg4pru benchmark`.
        tuned (`dict`, *optional*): `speed.json` of `reg4pru tune`.
        pruned (`dict`, *optional*): `prune_results.json` of `reg4pru prune`.
        dataset_id (`str`, *optional*): Hub id of the data; default: what the training read, if it is on the Hub.
        base_model (`str`, *optional*): Hub id of the checkpoint that training started from; default: as recorded.
        license (`str`, *optional*): Licence of the weights; default: Apache-2.0 if trained from scratch, else that of
            the base model if it is in [`BASE_LICENCES`], else `"other"`.
        figure (`str`, *optional*): Path of the figure in the repository.
        class_figure (`str`, *optional*): Path of that of the classes.
    """
    arguments = {**(train_results or {}).get("arguments", {}), **(train_results or {}).get("used", {})}
    fives = card_text.fives_sources(train_results, metrics)
    measured_on = measured_id(metrics, dataset_id) if metrics else None
    dataset_id = dataset_id or hub_id(arguments.get("dataset"))
    start = _start(arguments, pruned)
    base_model = base_model or hub_id(start)
    base_licence = _licence_of(base_model)
    license = license or (base_licence or "other" if start or base_model else "apache-2.0")
    name = repo_id.split("/")[-1]
    results = (metrics or {}).get("results", {})
    card_data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["reg4pru", "token-pruning", "semantic-segmentation", "eomt", "vision-transformer", "custom_code"],
        datasets=[dataset_id] if dataset_id else None,
        base_model=base_model,
        metrics=list(HEADINGS if card_text.is_of_classes(results) else RESULT_METRICS) if results else None,
        model_name=name if results else None,
        eval_results=_eval_results(results, metrics, measured_on, fives) or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        name=name,
        config=config,
        image_size=card_text.input_size(config),
        parameters=card_text.number_of_parameters(num_parameters),
        stages_sentence=card_text.stages_sentence(config),
        dataset_id=dataset_id,
        **_text_of_classes(config, results),
        measured_sentence=card_text.measured_sentence(metrics, measured_on, fives) if results else "",
        figure=figure,
        class_figure=class_figure,
        **card_text.speed(benchmark),
        **card_text.tuned(tuned),
        data_sentence=card_text.data_sentence(train_results, dataset_id, fives),
        training_sentence=card_text.training_sentence(train_results, start, base_model),
        **card_text.pruning(pruned),
        recipe_table=card_text.recipe_table(config, arguments),
        licence_sentence=card_text.licence_sentence(license, base_model, base_licence, bool(fives)),
        cites_fives=bool(fives),
    )


def _licence_of(base_model: str | None) -> str | None:
    return next((licence for name, licence in BASE_LICENCES.items() if (base_model or "").startswith(name)), None)


def _start(arguments: dict, pruned: dict | None) -> str | None:
    """What a training, or what `reg4pru prune` began with."""
    recorded = arguments or (pruned or {}).get("arguments", {})
    return recorded.get("model_name_or_path") or recorded.get("backbone_name_or_path")


def _text_of_classes(config: dict, results: dict) -> dict[str, str | list[str] | bool]:
    """What depends on whether the model has two classes, vessels or others, or more."""
    names = card_text.class_names(config)
    if len(names) == 2:
        text, table = card_text.what_it_does(names), card_text.results_table(results, RESULT_METRICS)
    else:
        text, table = class_card_text.what_it_does(names), class_card_text.results_table(results)
    of_vessels = names == VESSEL_CLASSES
    return {"classes": names, "of_vessels": of_vessels, "what_it_does": text, "results_table": table}


def eval_results_yaml(metrics: dict, dataset_id: str, of_vessels: bool = True) -> str:
    """
    The content of `.eval_results/<name>.yaml`, the Hub's newer place for results: Dice pooled over pixels by keep
    rate, or mean IoU of more than two classes.
    """
    settings, provenance = metrics["settings"], metrics["provenance"]
    of_classes = card_text.is_of_classes(metrics["results"])
    what = "Mean IoU over all pixels" if of_classes else "Dice pooled over pixels"
    values = {
        rate: result["mean_iou"] if of_classes else result["pooled"]["dice"]
        for rate, result in metrics["results"].items()
    }
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id,
            task_id="vessel_segmentation" if of_vessels else "semantic_segmentation",
            value=round(value, 4),
            dataset_revision=settings["dataset_revision"],
            date=provenance["date"],
            notes=f"{what}, keep rate {rate} per stage, {settings['side']} split",
        )
        for rate, value in values.items()
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)


def _eval_results(results: dict, metrics: dict | None, dataset_id: str | None, fives: set[str]) -> list[EvalResult]:
    if not results:
        return []
    name = card_text.data_name(metrics["settings"]["dataset"], dataset_id, fives)
    of_classes = card_text.is_of_classes(results)
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset_id or {"FIVES": "fives", "synthetic images": "synthetic"}.get(name, "custom"),
            dataset_name=name,
            dataset_split=metrics["settings"]["side"],
            dataset_revision=metrics["settings"]["dataset_revision"],
            metric_type=metric,
            metric_name=f"{label}, keep rate {rate} per stage",
            metric_value=round(values[metric], 4),
        )
        for rate, result in results.items()
        for values in [result if of_classes else result["pooled"]]
        for metric, label in (HEADINGS if of_classes else RESULT_METRICS).items()
        if values[metric] is not None
    ]
