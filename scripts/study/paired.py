"""Paired differences between variants or keep rates, of the same seed and image, with bootstrap intervals."""

from pathlib import Path

import numpy as np

from ..common.atomic_files import replace_table
from ..common.keep_rates import rate_name
from ..reporting.tables import markdown_table
from .definition import AS_TRAINED, Study, is_as_trained
from .evaluation import read_images
from .metrics import metrics_of
from .run_folder import RunFolder

FIELDS = ("variant", "seed", "evaluation", "keep_rate", "name", "condition")
NUM_RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles


def collect_images(study: Study, runs_dir: Path) -> list[dict]:
    """
    One row with [`FIELDS`] and the metrics that are compared per variant, seed, evaluation, keep rate and image, in
    the order of the study.
    """
    rows = []
    for variant in study.variants:
        for seed in study.seeds:
            measured = read_images(RunFolder(runs_dir, variant, seed))
            for evaluation in study.evaluations:
                for rate in map(rate_name, study.keep_rates):
                    place = {"variant": variant, "seed": seed, "evaluation": evaluation, "keep_rate": rate}
                    images = measured.get((evaluation, rate), [])
                    fields = (*FIELDS, *metrics_of(images).compared)
                    rows += [{field: {**place, **row}[field] for field in fields} for row in images]
    return rows


def write_images(path: Path, rows: list[dict]) -> None:
    """Write the rows of [`collect_images`] as CSV."""
    replace_table(path, (*FIELDS, *metrics_of(rows).compared), rows)


class Pairs:
    """
    One metric of all images, to take differences.

    Args:
        rows (`list[dict]`): From [`collect_images`].
        metric (`str`): One of [`StudyMetrics.compared`].
    """

    def __init__(self, rows: list[dict], metric: str):
        self.values: dict[tuple, dict[int, dict[str, float]]] = {}
        for row in rows:
            of_place = self.values.setdefault((row["evaluation"], row["variant"], row["keep_rate"]), {})
            of_place.setdefault(row["seed"], {})[row["name"]] = row[metric]

    def differences(self, evaluation: str, one: tuple[str, float], other: tuple[str, float]) -> np.ndarray:
        """
        One minus the other.

        Args:
            evaluation (`str`): Evaluation of both.
            one, other (`tuple[str, float]`): Variant and keep rate.

        Returns:
            `np.ndarray` of shape `(num_seeds, num_images)`: for the seeds and images that both have; nan where the
            metric is undefined.
        """
        first, second = (self.values.get((evaluation, variant, rate_name(rate)), {}) for variant, rate in (one, other))
        seeds = sorted(first.keys() & second.keys())
        shared = [first[seed].keys() & second[seed].keys() for seed in seeds]
        names = sorted(set.intersection(*shared)) if shared else []
        cells = [[first[seed][name] - second[seed][name] for name in names] for seed in seeds]
        return np.array(cells, dtype=float).reshape(len(seeds), len(names))


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """
    Mean, and 95 % interval of a bootstrap that resamples seeds and images independently of each other: the seed is a
    random effect that all images of a run share.

    Args:
        differences (`np.ndarray` of shape `(num_seeds, num_images)`): From [`Pairs.differences`].

    Returns:
        `tuple[float, float, float]`: mean, lower and upper end; nan without any defined value.
    """
    if not np.isfinite(differences).any():
        return (np.nan,) * 3
    draw = np.random.default_rng(0)
    num_seeds, num_images = differences.shape
    seeds = draw.integers(num_seeds, size=(NUM_RESAMPLES, num_seeds, 1))
    images = draw.integers(num_images, size=(NUM_RESAMPLES, 1, num_images))
    resampled = differences[seeds, images].reshape(NUM_RESAMPLES, -1)
    resampled = resampled[np.isfinite(resampled).any(axis=1)]
    lower, upper = np.percentile(np.nanmean(resampled, axis=1), INTERVAL)
    return float(np.nanmean(differences)), float(lower), float(upper)


def paired_markdown(study: Study, rows: list[dict]) -> str:
    """
    For every data set and metric the differences of each variant from the first variant unpruned, and from the first
    of the two compared variants at the same keep rate.
    """
    reference = next(iter(study.variants))
    parts = [
        f"# {study.name}: paired differences\n",
        "Mean difference of the same image and seed, with the 95 % interval of a bootstrap over seeds and images "
        f"({NUM_RESAMPLES:,} draws, both resampled independently). Metrics are those of single images, so that their "
        "means differ from the metrics over all pixels in `table.md`. With one seed the interval holds for that "
        "training only, and with three images it says little.\n",
    ]
    against = [(f"{study.variants[reference]['label']}, unpruned", lambda rate: (reference, 1.0))]
    if study.compare:
        other = study.compare[0]
        against.append((f"{study.variants[other]['label']}, at the same keep rate", lambda rate: (other, rate)))
    for evaluation in [name for name, settings in study.evaluations.items() if is_as_trained(settings)]:
        where = "test images" if evaluation == AS_TRAINED else evaluation
        for metric, heading in metrics_of(rows).compared.items():
            pairs = Pairs(rows, metric)
            for label, other_at in against:
                lines = _lines(study, pairs, evaluation, other_at)
                if lines:
                    rates = map(rate_name, study.keep_rates)
                    table = markdown_table([[f"{where}, minus {label}", "seeds × images", *rates], *lines])
                    parts.append(f"## {heading} against {label}, {where}\n\n{table}\n")
    return "\n".join(parts)


def _lines(study: Study, pairs: Pairs, evaluation: str, other_at) -> list[list[str]]:
    lines = []
    for variant, settings in study.variants.items():
        differences = [pairs.differences(evaluation, (variant, rate), other_at(rate)) for rate in study.keep_rates]
        if all((variant, rate) == other_at(rate) for rate in study.keep_rates) or not any(map(np.size, differences)):
            continue
        most = max(differences, key=np.size).shape
        cells = [
            "–" if (variant, rate) == other_at(rate) else _cell(*bootstrap_interval(values))
            for rate, values in zip(study.keep_rates, differences, strict=True)
        ]
        lines.append([settings["label"], f"{most[0]} × {most[1]}", *cells])
    return lines


def _cell(mean: float, lower: float, upper: float) -> str:
    return "–" if np.isnan(mean) else f"{mean:+.3f} [{lower:+.3f}, {upper:+.3f}]"
