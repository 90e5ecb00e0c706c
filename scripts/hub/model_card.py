"""The card of a checkpoint, rendered from the JSON files that the scripts wrote: no number in it is typed by hand."""

import json
import math
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from safetensors import safe_open

from datasets_fives.loading import source_kind
from datasets_fives.sources.fives_archive import is_archive_name

from ..common.recipes import RECIPE
from ..reporting.speed import front_rows, measured_sentence

TEMPLATE = Path(__file__).resolve().parent / "card_template.md"
RESULT_METRICS = {"average_precision": "AP", "dice": "Dice", "iou": "IoU", "cldice": "clDice"}
_CONFIG_RECIPE = ("train_pruning", "selector", "selection_pool", "routing", "routing_keep_rate", "routing_window",
                  "pruning_layers", "keep_rates", "reactivation_layer", "drift_correction")  # fmt: skip


def hub_id(name: str | None) -> str | None:
    """`name` if it is a Hub id and no folder here, else `None`."""
    is_id = name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".") and not Path(name).exists()
    return name if is_id else None


def measured_id(metrics: dict, dataset_id: str | None) -> str | None:
    """Hub id of what `metrics.json` was measured on: `dataset_id` if one is given; `None` if it is on no Hub."""
    source = metrics["settings"]["dataset"]
    return None if source == "synthetic" else dataset_id or hub_id(source)


def render_card(
    checkpoint: Path,
    repo_id: str,
    *,
    train_results: dict | None = None,
    metrics: dict | None = None,
    benchmark: dict | None = None,
    tuned: dict | None = None,
    dataset_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    figure: str | None = None,
) -> ModelCard:
    """
    Args:
        checkpoint (`Path`): Folder with `config.json` and safetensors.
        repo_id (`str`): Where the checkpoint will be found, `"user/name"`.
        train_results (`dict`, *optional*): `train_results.json` of `reg4pru train` or `finetune`.
        metrics (`dict`, *optional*): `metrics.json` of `reg4pru evaluate`.
        benchmark (`dict`, *optional*): `benchmark.json` of `reg4pru benchmark`.
        tuned (`dict`, *optional*): `speed.json` of `reg4pru tune`.
        dataset_id (`str`, *optional*): Hub id of the data; by default what the training read, if that is one.
        base_model (`str`, *optional*): Hub id of the checkpoint that training began with; default as above.
        license (`str`, *optional*): Of the weights; by default Apache-2.0 from scratch, else `"other"`.
        figure (`str`, *optional*): Path of the figure in the repository.

    Returns:
        `ModelCard`: with metadata for the Hub.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    arguments = (train_results or {}).get("arguments", {})
    source = arguments.get("dataset")
    fives = _fives_sources(train_results, metrics)
    measured_on = measured_id(metrics, dataset_id) if metrics else None
    dataset_id = dataset_id or hub_id(source)
    start = arguments.get("model_name_or_path") or arguments.get("backbone_name_or_path")
    base_model = base_model or hub_id(start)
    name = repo_id.split("/")[-1]
    results = (metrics or {}).get("results", {})
    card_data = ModelCardData(
        license=license or ("other" if start else "apache-2.0"),
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["reg4pru", "token-pruning", "semantic-segmentation", "eomt", "dinov3", "custom_code"],
        datasets=[dataset_id] if dataset_id else None,
        base_model=base_model,
        metrics=list(RESULT_METRICS) if results else None,
        model_name=name if results else None,
        eval_results=_eval_results(results, metrics, measured_on, fives) or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        name=name,
        config=config,
        image_size=_times(config["image_size"]) + " pixels",
        classes=_classes(config),
        parameters=_count_parameters(checkpoint),
        stages_sentence=_stages_sentence(config),
        dataset_id=dataset_id,
        results=[_result_row(rate, result) for rate, result in results.items()],
        measured_sentence=_measured_sentence(metrics, measured_on, fives) if results else "",
        figure=figure,
        **_speed(benchmark),
        **_tuned(tuned),
        data_sentence=_data_sentence(train_results, dataset_id, fives),
        cites_fives=bool(fives),
        training_sentence=_training_sentence(train_results, start, base_model),
        recipe={
            **{field: config[field] for field in _CONFIG_RECIPE if field in config},
            **{field: arguments[field] for field in RECIPE if arguments.get(field) is not None},
        },
    )


def eval_results_yaml(metrics: dict, dataset_id: str) -> str:
    """The content of `.eval_results/<name>.yaml`, the Hub's newer place for results: pooled Dice by keep rate."""
    settings, provenance = metrics["settings"], metrics["provenance"]
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id,
            task_id="vessel_segmentation",
            value=round(result["pooled"]["dice"], 4),
            dataset_revision=settings["dataset_revision"],
            date=provenance["date"],
            notes=f"Dice pooled over pixels, keep rate {rate} per stage, {settings['side']} split",
        )
        for rate, result in metrics["results"].items()
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)


def _eval_results(results: dict, metrics: dict | None, dataset_id: str | None, fives: set[str]) -> list[EvalResult]:
    if not results:
        return []
    name = _data_name(metrics["settings"]["dataset"], dataset_id, fives)
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset_id or name.split()[0].lower(),
            dataset_name=name,
            dataset_split=metrics["settings"]["side"],
            dataset_revision=metrics["settings"]["dataset_revision"],
            metric_type=metric,
            metric_name=f"{label}, keep rate {rate} per stage",
            metric_value=round(result["pooled"][metric], 4),
        )
        for rate, result in results.items()
        for metric, label in RESULT_METRICS.items()
        if result["pooled"][metric] is not None
    ]


def _result_row(rate: str, result: dict) -> dict[str, str]:
    pooled, dice = result["pooled"], result["per_image"]["dice"]
    row = {metric: _number(pooled[metric]) for metric in (*RESULT_METRICS, "centerline_recall")}
    return {"rate": rate, **row, "per_image_dice": f"{_number(dice['mean'])} ± {_number(dice['sd'])}"}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _measured_sentence(metrics: dict, dataset_id: str | None, fives: set[str]) -> str:
    settings, provenance = metrics["settings"], metrics["provenance"]
    count = next(iter(metrics["results"].values()))["num_images"]
    where = "inside the field of view" if settings["field_of_view"] else "on whole frames"
    data = _linked(dataset_id) if dataset_id else _data_name(settings["dataset"], None, fives)
    split = "" if settings["split"] == "official" else f" (split: {Path(settings['split']).name})"
    trained_on = len(metrics.get("trained_on", []))
    warning = f" **{trained_on} of them were trained on.**" if trained_on else ""
    return (
        f"Measured on {count} images, the {settings['side']} side of {data}{split}, {where}, threshold "
        f"{settings['threshold']:g}, on {provenance['date'][:10]} with torch {provenance['versions']['torch']} on "
        f"{provenance['device']}.{warning}"
    )


def _tuned(tuned: dict | None) -> dict:
    """What `reg4pru tune` found: rows and sentence, and a budget that all of it meets."""
    if tuned is None:
        return {"tuned": []}
    slowest = max(row["milliseconds"] for row in tuned["candidates"] if row["on_front"])
    return {
        "tuned": front_rows(tuned),
        "tuned_budget": math.ceil(slowest),
        "tuned_sentence": measured_sentence(tuned),
    }


def _speed(benchmark: dict | None) -> dict:
    """What the template shows of the inference part of `benchmark.json`."""
    rows = (benchmark or {}).get("inference", [])
    if not rows:
        return {"speed": []}
    provenance, arguments = benchmark["provenance"], benchmark["arguments"]
    compiled = ", compiled" if arguments["compile_mode"] else ""
    return {
        "speed": [
            {
                "rate": "dense" if row["keep_rate"] is None else f"{row['keep_rate']:g}",
                "batch_size": row["batch_size"],
                "reactivation_layer": "–" if row["reactivation_layer"] is None else row["reactivation_layer"],
                "throughput": f"{row['throughput']:.4g}",
                "ratio": f"{row['ratio']:.2f}",
                "gflops": f"{row['gflops'] / row['batch_size']:.4g}",
                "memory": f"{row['peak_memory'] / 1e6:.0f}",
            }
            for row in rows
        ],
        "speed_sentence": f"Measured on {provenance['date'][:10]} on {provenance['device']} with torch "
        f"{provenance['versions']['torch']}, {arguments['image_size']} × {arguments['image_size']} pixels, "
        f"{arguments['dtype']}{compiled}. Dense is the same network as transformers has it, without selectors.",
    }


def _fives_sources(train_results: dict | None, metrics: dict | None) -> set[str]:
    """
    The sources that are known to be FIVES, whose licence and citation the card then states: those of which all names
    that were recorded are names of its archive, as `reg4pru prepare` and copies on the Hub keep them.
    """
    names: dict[str, set[str]] = {}
    if train_results and (source := train_results.get("arguments", {}).get("dataset")):
        names[source] = set(train_results.get("train_names") or ())
    if metrics:
        names.setdefault(metrics["settings"]["dataset"], set()).update(metrics.get("images", ()))
    return {
        source
        for source, found in names.items()
        if found and all(is_archive_name(_image(name)) for name in found) and _may_be_fives(source)
    }


def _may_be_fives(source: str) -> bool:
    """Names such as `train/1_A` can be anybody's: a folder that is still here must also lie as FIVES does."""
    return source_kind(source) in ("archive", "saved") or (source != "synthetic" and not Path(source).is_dir())


def _image(name: str) -> str:
    """The image of a tile, `"train/1_A#0-1"`."""
    return name.partition("#")[0]


def _linked(dataset_id: str) -> str:
    return f"[`{dataset_id}`](https://huggingface.co/datasets/{dataset_id})"


def _data_name(source: str, dataset_id: str | None, fives: set[str]) -> str:
    if source == "synthetic":
        return "synthetic images"
    return "FIVES" if source in fives else dataset_id or "images of the user's own"


def _data_sentence(results: dict | None, dataset_id: str | None, fives: set[str]) -> str:
    arguments = (results or {}).get("arguments", {})
    source, revision = arguments.get("dataset"), arguments.get("dataset_revision")
    count = len({_image(name) for name in (results or {}).get("train_names") or ()})
    images = f" Training saw {count} of them; their names are in `train_results.json`." if count else ""
    if source == "synthetic":
        return f"Synthetic fundus images, drawn by a program: no patient's data.{images}"
    at = f" at revision `{revision}`" if revision else ""
    if source in fives:
        return (
            "FIVES (Jin et al., Scientific Data 2022, doi:10.1038/s41597-022-01564-3), fundus images with vessel "
            "masks, licence [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/), read from "
            f"{_linked(dataset_id) if dataset_id else 'a local copy'}{at}.{images}"
        )
    if dataset_id:
        there = f"{_linked(dataset_id)}{at}: see there where they come from, and under which licence."
        return f"Images of {there}{images}"
    if source is None:
        return "The images that it was trained on were not recorded."
    return (
        "Images of the user's own. Where they come from, and their licence, was not recorded: whoever publishes "
        f"these weights must state it here.{images}"
    )


def _training_sentence(results: dict | None, start: str | None, base_model: str | None) -> str:
    if results is None:
        return "How it was trained was not recorded."
    begun = f"from `{base_model}`, whose licence binds these weights, too" if base_model else "from scratch"
    if start and not base_model:
        begun = "from a local checkpoint"
    provenance, best = results["provenance"], results["best_validation_ap"]
    validated = f" Best validation AP {best:.3f}, at step {results['best_step']}." if best is not None else ""
    return (
        f"{results['total_steps']:,} steps {begun}, on {provenance['device']}, with torch "
        f"{provenance['versions']['torch']} and transformers {provenance['versions']['transformers']}.{validated}"
    )


def _stages_sentence(config: dict) -> str:
    layers, rates = config["pruning_layers"], config["keep_rates"]
    if not layers:
        return "This one has no pruning stages."
    rates = rates if isinstance(rates, list) else [rates] * len(layers)
    listed = ", ".join(str(layer) for layer in layers)
    return (
        f"Tokens are pruned after the layers {listed} (keep rates {', '.join(f'{rate:g}' for rate in rates)} by "
        f"default) and put back after layer {config['reactivation_layer']}."
    )


def _classes(config: dict) -> str:
    names = [name for label, name in config.get("id2label", {}).items() if int(label) > 0]
    return " and ".join(f"{name}s" for name in names) or "vessels"


def _times(size: int | list[int]) -> str:
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} × {width}"


def _count_parameters(checkpoint: Path) -> str:
    count = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (no mapping)
                size = 1
                for side in weights.get_slice(name).get_shape():
                    size *= side
                count += size
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
