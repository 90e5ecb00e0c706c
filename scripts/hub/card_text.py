"""Sentences and tables of a model card, from the records of training, evaluation and speed."""

import math
from pathlib import Path

from datasets_fives.loading import source_kind
from datasets_fives.sources.fives_archive import is_archive_name

from ..common.recipes import RECIPE
from ..inference.model_classes import VESSEL_CLASSES
from ..reporting.agreement import report_text
from ..reporting.speed import front_table
from ..reporting.speed import measured_sentence as tuned_sentence
from ..reporting.tables import UNDEFINED, format_number, markdown_table

CONFIG_RECIPE = ("train_pruning", "selector", "selection_pool", "routing", "routing_keep_rate", "routing_window",
                 "pruning_layers", "keep_rates", "reactivation_layer", "drift_correction")  # fmt: skip
# The record of the best validation of a training → what its metric is called.
BEST = {"best_validation_ap": "AP", "best_validation_mean_iou": "mean IoU"}
CC_BY = "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)"


def results_table(results: dict, metrics: dict[str, str]) -> str:
    """Pooled metrics and mean Dice per image, by keep rate; empty without results."""
    if not results:
        return ""
    lines = [["keep rate per stage", *metrics.values(), "centre-line recall", "Dice per image"]]
    for rate, result in results.items():
        dice = result["per_image"]["dice"]
        pooled = [format_number(result["pooled"][metric]) for metric in (*metrics, "centerline_recall")]
        lines.append([rate, *pooled, f"{format_number(dice['mean'])} ± {format_number(dice['sd'])}"])
    return markdown_table(lines)


def measured_sentence(metrics: dict, dataset_id: str | None, fives: set[str]) -> str:
    """On which images, where and when it was evaluated."""
    settings, provenance = metrics["settings"], metrics["provenance"]
    count = next(iter(metrics["results"].values()))["num_images"]
    where = "inside the field of view" if settings["field_of_view"] else "on whole frames"
    where += f", threshold {settings['threshold']:g}"
    if is_of_classes(metrics["results"]):
        where = "on whole images"
    data = _linked(dataset_id) if dataset_id else data_name(settings["dataset"], None, fives)
    split = "" if settings["split"] == "official" else f" (split: {Path(settings['split']).name})"
    trained_on = len(metrics.get("trained_on", []))
    warning = f" **{trained_on} of them were trained on.**" if trained_on else ""
    return (
        f"Measured on {count} images, the {settings['side']} set of {data}{split}, {where}, "
        f"on {provenance['date'][:10]} with torch {provenance['versions']['torch']} on "
        f"{provenance['device']}.{warning}{source_sentence(metrics, 'metrics.json')}"
    )


def source_sentence(content: dict, file: str) -> str:
    """Where numbers of the card come from, which weights and which code; empty for records that do not say it."""
    weights, commit = content.get("weights"), content["provenance"].get("commit")
    if not isinstance(weights, str):
        return ""
    by = f", measured by `{commit}`" if commit else ""
    return f" The numbers are those of `results/{file}`{by}, of weights with the fingerprint `{weights}`."


def speed(benchmark: dict | None) -> dict[str, str]:
    """Sentence and table of the inference part of `benchmark.json`; empty without one."""
    rows = (benchmark or {}).get("inference", [])
    if not rows:
        return {"speed_sentence": "", "speed_table": ""}
    provenance, arguments = benchmark["provenance"], benchmark["arguments"]
    compiled = ", compiled" if arguments["compile_mode"] else ""
    tiles = f" in {benchmark['tiles_per_image']} tiles" if benchmark.get("tiles_per_image") else ""
    lines = [
        ["keep rate per stage", "batch size", "reactivation after layer", "images/s", "× dense", "GFLOPs per image",
         "peak memory (MB)"]
    ]  # fmt: skip
    for row in rows:
        lines.append(
            [
                "dense" if row["keep_rate"] is None else f"{row['keep_rate']:g}",
                str(row["batch_size"]),
                UNDEFINED if row["reactivation_layer"] is None else str(row["reactivation_layer"]),
                f"{row['throughput']:.4g}",
                f"{row['ratio']:.2f}",
                f"{row['gflops'] / row['batch_size']:.4g}",
                f"{row['peak_memory'] / 1e6:.0f}",
            ]
        )
    sentence = (
        f"Measured on {provenance['date'][:10]} on {provenance['device']} with torch "
        f"{provenance['versions']['torch']}, {arguments['image_size']} × {arguments['image_size']} pixels{tiles}, "
        f"{arguments['dtype']}{compiled}. Dense is the same network in transformers, without selectors."
        f"{source_sentence(benchmark, 'benchmark.json')}"
    )
    return {"speed_sentence": sentence, "speed_table": markdown_table(lines)}


def tuned(speed: dict | None) -> dict[str, str | int]:
    """Sentence and table of `speed.json`, and a budget that all of its settings meet; empty without one."""
    if speed is None:
        return {"tuned_sentence": "", "tuned_table": "", "tuned_budget": 0}
    slowest = max(row["milliseconds"] for row in speed["candidates"] if row["on_front"])
    return {
        "tuned_sentence": tuned_sentence(speed),
        "tuned_table": front_table(speed),
        "tuned_budget": math.ceil(slowest),
    }


def fives_sources(train_results: dict | None, metrics: dict | None) -> set[str]:
    """
    The sources that are known to be FIVES, whose licence and citation the card then states: those of which all
    recorded names are names of its archive, as `reg4pru prepare` and copies on the Hub keep them.
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
    """Any data may have names such as `train/1_A`: a folder that still exists must also have the layout of FIVES."""
    return source_kind(source) in ("archive", "saved") or (source != "synthetic" and not Path(source).is_dir())


def _image(name: str) -> str:
    """The image of a tile, `"train/1_A#0-1"`."""
    return name.partition("#")[0]


def _linked(repo_id: str, kind: str = "datasets/") -> str:
    return f"[`{repo_id}`](https://huggingface.co/{kind}{repo_id})"


def data_name(source: str, dataset_id: str | None, fives: set[str]) -> str:
    """What a data set is called in the text."""
    if source == "synthetic":
        return "synthetic images"
    return "FIVES" if source in fives else dataset_id or "the user's own images"


def data_sentence(results: dict | None, dataset_id: str | None, fives: set[str]) -> str:
    """What it was trained on, with source and licence if they are known."""
    arguments = (results or {}).get("arguments", {})
    source, revision = arguments.get("dataset"), arguments.get("dataset_revision")
    count = len({_image(name) for name in (results or {}).get("train_names") or ()})
    images = f" {count} of them were trained on; `train_results.json` lists their names." if count else ""
    if source == "synthetic":
        return f"Synthetic fundus images, drawn by a program: no patient's data.{images}"
    at = f" at revision `{revision}`" if revision else ""
    if source in fives:
        return (
            "FIVES (Jin et al., Scientific Data 2022, doi:10.1038/s41597-022-01564-3), fundus images with vessel "
            f"masks, licence {CC_BY}, read from {_linked(dataset_id) if dataset_id else 'a local copy'}{at}.{images}"
        )
    if dataset_id:
        return f"Images of {_linked(dataset_id)}{at}; their origin and licence are stated there.{images}"
    if source is None:
        return "The images that it was trained on were not recorded."
    return (
        "The user's own images. Their origin and licence were not recorded: whoever publishes these weights must "
        f"state them here.{images}"
    )


def pruning(pruned: dict | None) -> dict[str, str]:
    """What `reg4pru prune` learnt from, and its report, from its `prune_results.json`; empty without one."""
    if pruned is None:
        return {"pruned_on": "", "pruning_report": ""}
    labels = "with their labels" if pruned["arguments"]["level"] == "labels" else "without labels"
    images = f"on {pruned['num_images']['fitted_on']} images {labels} (hashes: `prune_results.json`)"
    return {"pruned_on": images, "pruning_report": report_text(pruned)}


def training_sentence(results: dict | None, start: str | None, base_model: str | None) -> str:
    """How long, from what and where it was trained."""
    if results is None:
        return "How it was trained was not recorded."
    begun = f"from {_linked(base_model, '')}" if base_model else "from a local checkpoint" if start else "from scratch"
    provenance = results["provenance"]
    best, metric = next(((value, BEST[name]) for name, value in results.items() if name in BEST), (None, None))
    validated = f" Best validation {metric} {best:.3f}, at step {results['best_step']}." if best is not None else ""
    return (
        f"{results['total_steps']:,} steps {begun}, on {provenance['device']}, with torch "
        f"{provenance['versions']['torch']} and transformers {provenance['versions']['transformers']}.{validated}"
    )


def recipe_table(config: dict, arguments: dict) -> str:
    """The settings of the model and the training that a reader needs to repeat it."""
    settings = {
        **{field: config[field] for field in CONFIG_RECIPE if field in config},
        **{field: arguments[field] for field in RECIPE if arguments.get(field) is not None},
    }
    return markdown_table([["setting", "value"], *([name, str(value)] for name, value in settings.items())])


def licence_sentence(licence: str, base_model: str | None, base_licence: str | None, on_fives: bool) -> str:
    """Licences of weights, base model and data."""
    parts = [f"Weights: `{licence}`."]
    if base_model:
        terms = f"`{base_licence}`" if base_licence else "its licence, stated there, applies to these weights as well"
        parts.append(f"They were trained from {_linked(base_model, '')} ({terms}).")
    if on_fives:
        parts.append(f"Data: FIVES by Jin et al., {CC_BY}; please cite it (below).")
    return " ".join(parts)


def stages_sentence(config: dict) -> str:
    """After which layers tokens are pruned and reactivated."""
    layers, rates = config["pruning_layers"], config["keep_rates"]
    if not layers:
        return "It has no pruning stages."
    rates = rates if isinstance(rates, list) else [rates] * len(layers)
    listed = ", ".join(str(layer) for layer in layers)
    return (
        f"Tokens are pruned after the layers {listed} (keep rates {', '.join(f'{rate:g}' for rate in rates)} by "
        f"default) and reactivated after layer {config['reactivation_layer']}, counted from 0."
    )


def class_names(config: dict) -> list[str]:
    """Names of the classes, by index; background and vessel where a configuration names none."""
    names = [name for _, name in sorted(config.get("id2label", {}).items(), key=lambda item: int(item[0]))]
    return VESSEL_CLASSES if names in ([], ["LABEL_0", "LABEL_1"]) else names


def is_of_classes(results: dict) -> bool:
    """Whether results by keep rate are those of more than two classes."""
    return any("per_class" in result for result in results.values())


def what_it_does(names: list[str]) -> str:
    """The first sentence, of a model of two classes."""
    return f"Segments {names[1]}s in images"


def input_size(config: dict) -> str:
    """`"252 × 252 pixels"`."""
    size = config["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} × {width} pixels"


def number_of_parameters(count: int) -> str:
    """`"22.1 M"`, or all digits of a small number."""
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
