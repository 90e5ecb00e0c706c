import math
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.special import expit
from skimage import measure
from skimage.morphology import skeletonize
from sklearn import metrics as sk

from datasets_fives.metrics.accumulator import ERRORS, METRICS, VesselMetrics


def example(seed: int = 0, shape: tuple[int, int] = (72, 96)) -> tuple[np.ndarray, np.ndarray]:
    """Wavy vessels of three widths and an imperfect prediction of them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, dtype=bool)
    for width in (1, 3, 6):
        middle = rng.uniform(0.2, 0.8) * shape[0] + 6 * np.sin(columns / rng.uniform(6, 12))
        mask |= abs(rows - middle) < width
    logits = 6 * ndimage.gaussian_filter(mask.astype(float), 1.5) - 3 + rng.normal(0, 1.2, shape)
    return expit(logits).astype(np.float32), mask


def disc(shape: tuple[int, int], radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - shape[0] / 2) ** 2 + (columns - shape[1] / 2) ** 2 < radius**2


def expected(probability, mask, inside=None, threshold=0.5):
    """The same metrics from scikit-learn and, written plainly, from the papers."""
    inside = np.ones_like(mask) if inside is None else inside
    truth, scores = mask[inside], probability[inside]
    predicted = scores > threshold
    prediction = probability > threshold
    true_line, predicted_line = skeletonize(mask) & inside, skeletonize(prediction) & inside
    line_precision, line_recall = mask[predicted_line].mean(), prediction[true_line].mean()
    edges = []
    for image in (mask, prediction):
        padded = np.pad(image, 1)
        # Every one of the nine shifts must be inside the mask.
        eroded = np.all(
            [padded[i : i + image.shape[0], j : j + image.shape[1]] for i in range(3) for j in range(3)], axis=0
        )
        edges.append(image & ~eroded & inside)
    return {
        "average_precision": sk.average_precision_score(truth, scores),
        "auroc": sk.roc_auc_score(truth, scores),
        "dice": sk.f1_score(truth, predicted),
        "iou": sk.jaccard_score(truth, predicted),
        "precision": sk.precision_score(truth, predicted),
        "recall": sk.recall_score(truth, predicted),
        "cldice": 2 * line_precision * line_recall / (line_precision + line_recall),
        "boundary_iou": (edges[0] & edges[1]).sum() / (edges[0] | edges[1]).sum(),
        "centerline_recall": line_recall,
        "mcc": sk.matthews_corrcoef(truth, predicted),
        "betti0_error": abs(betti(prediction & inside)[0] - betti(mask & inside)[0]),
        "betti1_error": abs(betti(prediction & inside)[1] - betti(mask & inside)[1]),
        "calibration_error": calibration_error(scores, truth),
    }


def betti(mask: np.ndarray) -> tuple[int, int]:
    """Components by flood filling, holes from Euler's number: components - holes."""
    components = measure.label(mask, connectivity=2).max()
    return components, components - measure.euler_number(mask, connectivity=2)


def calibration_error(scores: np.ndarray, truth: np.ndarray) -> float:
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (scores >= low) & ((scores < low + 1 / 15) | (low == 14 / 15))
        if inside.any():
            error += inside.mean() * abs(scores[inside].mean(dtype=np.float64) - truth[inside].mean())
    return error


@pytest.mark.parametrize("with_field", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_image_equals_the_references(threshold, with_field):
    probability, mask = example()
    inside = disc(mask.shape, 30) if with_field else None
    row = VesselMetrics(threshold=threshold).update("1_A", "A", probability, mask.astype(np.uint8), inside)
    reference = expected(probability, mask, inside, threshold)
    assert set(reference) == set(METRICS)
    assert {key: row[key] for key in METRICS} == pytest.approx(reference, abs=1e-9)
    assert (row["name"], row["condition"]) == ("1_A", "A")


def test_ties_are_treated_as_in_scikit_learn():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 40)) < 0.2
    probability = np.round(np.clip(rng.normal(0.4 + 0.2 * mask, 0.3), 0, 1), 1)  # 11 levels with 0 and 1
    metrics = VesselMetrics()
    row = metrics.update("a", None, probability, mask)
    for values in (row, metrics.compute()["pooled"]):
        assert values["average_precision"] == pytest.approx(
            sk.average_precision_score(mask.ravel(), probability.ravel()), abs=1e-12
        )
        assert values["auroc"] == pytest.approx(sk.roc_auc_score(mask.ravel(), probability.ravel()), abs=1e-12)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (6, 0), (0.1, 0), (1, -12), (1, 12), (3, 15)])
def test_pooled_ranking_is_within_1e_4(scale, offset):
    """Also for probabilities that are tiny, nearly one (in float32 partly exactly one) or nearly all the same."""
    metrics, scores, truths = VesselMetrics(), [], []
    for seed in range(6):
        probability, mask = example(seed, (200, 240))
        logits = np.log(probability.astype(np.float64)) - np.log1p(-probability.astype(np.float64))
        probability = expit(scale * logits + offset).astype(np.float32)
        metrics.update(str(seed), None, probability, mask)
        scores.append(probability.ravel())
        truths.append(mask.ravel())
    scores, truths = np.concatenate(scores), np.concatenate(truths)
    pooled = metrics.compute()["pooled"]
    assert pooled["average_precision"] == pytest.approx(sk.average_precision_score(truths, scores), abs=1e-4)
    assert pooled["auroc"] == pytest.approx(sk.roc_auc_score(truths, scores), abs=1e-5)


def test_pooled_equals_the_images_set_side_by_side():
    metrics, images = VesselMetrics(), [example(seed) for seed in range(3)]
    for i, (probability, mask) in enumerate(images):
        metrics.update(str(i), None, probability, mask)
    # A gap keeps skeletons and boundaries of neighbours apart; it is outside the field of view.
    gap = ((0, 0), (0, 4))
    probability = np.concatenate([np.pad(p, gap) for p, _ in images], axis=1)
    mask = np.concatenate([np.pad(m, gap) for _, m in images], axis=1)
    inside = np.concatenate([np.pad(np.ones_like(m), gap) for _, m in images], axis=1)
    reference = VesselMetrics().update("all", None, probability, mask, inside)
    pooled = metrics.compute()["pooled"]
    for key in set(METRICS) - {"betti0_error", "betti1_error"}:
        assert pooled[key] == pytest.approx(reference[key], abs=1e-4 if key == "average_precision" else 1e-6), key
    # Numbers of components are not pooled: too many in one image do not make up for too few in another.
    for key in ("betti0_error", "betti1_error"):
        assert pooled[key] == np.mean([row[key] for row in metrics.rows])


def test_means_and_conditions():
    metrics = VesselMetrics()
    for seed, condition in enumerate(["A", "A", "D", None]):
        metrics.update(str(seed), condition, *example(seed))
    result = metrics.compute()
    dice = [row["dice"] for row in metrics.rows]
    assert result["num_images"] == 4
    assert result["per_image"]["dice"] == pytest.approx(
        {"mean": np.mean(dice), "sd": np.std(dice, ddof=1), "num_images": 4}
    )
    assert list(result["per_condition"]) == ["A", "D"]
    of_a = result["per_condition"]["A"]
    assert of_a["per_image"]["dice"]["mean"] == pytest.approx(np.mean(dice[:2]))
    assert of_a["num_images"] == 2
    alone = VesselMetrics()
    alone.update("2", "D", *example(2))
    assert result["per_condition"]["D"]["pooled"] == alone.compute()["pooled"]
    assert math.isnan(result["per_condition"]["D"]["per_image"]["dice"]["sd"])


def test_the_best_threshold_is_the_one_that_a_search_finds():
    metrics = VesselMetrics()
    images = [example(seed) for seed in range(3)]
    for i, (probability, mask) in enumerate(images):
        metrics.update(str(i), "A", probability, mask)
    result = metrics.compute()
    scores, truth = (np.concatenate([image[k].ravel() for image in images]) for k in (0, 1))
    dice = {t: sk.f1_score(truth, scores > t) for t in np.arange(0.02, 1, 0.02)}
    assert result["best_dice"] >= max(dice.values())
    assert result["best_dice"] == pytest.approx(max(dice.values()), abs=2e-3)
    # The threshold is one to use: it gives the Dice that is told.
    used = VesselMetrics(threshold=result["best_threshold"])
    for i, (probability, mask) in enumerate(images):
        used.update(str(i), "A", probability, mask)
    assert used.compute()["pooled"]["dice"] == pytest.approx(result["best_dice"], abs=1e-5)
    assert result["per_condition"]["A"]["best_threshold"] == result["best_threshold"]


def test_groups_are_measured_like_conditions():
    metrics, halves = VesselMetrics(), {"0": VesselMetrics(), "1": VesselMetrics()}
    for seed in range(5):
        blur = "01"[seed % 2]
        metrics.update(str(seed), "AD"[seed // 3], *example(seed), groups={"blur": blur, "contrast": "1"})
        halves[blur].update(str(seed), None, *example(seed))
    result = metrics.compute()
    assert set(result["per_group"]) == {"blur", "contrast"}
    assert list(result["per_condition"]) == ["A", "D"]
    for blur, half in halves.items():
        alone = half.compute()
        assert result["per_group"]["blur"][blur] == {key: alone[key] for key in result["per_group"]["blur"][blur]}
    whole = result["per_group"]["contrast"]["1"]
    assert whole == {key: result[key] for key in whole}
    with pytest.raises(ValueError, match="a group cannot be called condition"):
        metrics.update("x", "A", *example(), groups={"condition": "A"})
    ungrouped = VesselMetrics()
    ungrouped.update("x", None, *example())
    assert ungrouped.compute()["per_group"] == {}


def test_merge_equals_one_run():
    together, parts = VesselMetrics(), [VesselMetrics(), VesselMetrics()]
    for seed, condition in enumerate("ADGA"):
        for metrics in (together, parts[seed // 2]):
            metrics.update(str(seed), condition, *example(seed), groups={"blur": str(seed % 2)})
    first, second = (pickle.loads(pickle.dumps(part)) for part in parts)  # as between processes
    first.merge(second)
    assert first.compute() == together.compute()
    assert first.rows == together.rows
    assert second.compute() == parts[1].compute()
    with pytest.raises(ValueError, match="measured once: 2, 3"):
        first.merge(second)
    with pytest.raises(ValueError, match=r"threshold differs: 0.5 here, 0.4"):
        first.merge(VesselMetrics(threshold=0.4))


def test_memory_does_not_grow_with_the_images():
    metrics = VesselMetrics()
    probability, mask = example(shape=(400, 400))
    metrics.update("first", None, probability, mask)
    tracemalloc.start()
    for i in range(10):
        metrics.update(str(i), None, probability.copy(), mask.copy())
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # One new histogram has replaced the old; ten images would be 8 MB more.
    assert kept < 2 * 8 * metrics.num_bins + 200_000


@pytest.mark.skipif("FIVES_DIR" not in os.environ, reason="FIVES_DIR, the folder of the FIVES images, is not set")
def test_a_real_mask_is_measured_as_scikit_learn_does():
    path = sorted(Path(os.environ["FIVES_DIR"]).glob("*/Ground truth/*.png"))[0]
    mask = np.asarray(Image.open(path).convert("L")) > 127
    noise = np.random.default_rng(0).normal(0, 1.5, mask.shape)
    probability = expit(10 * ndimage.gaussian_filter(mask.astype(np.float32), 3) - 5 + noise).astype(np.float32)
    metrics = VesselMetrics()
    row = metrics.update(path.stem, "A", probability, mask)
    for values in (row, metrics.compute()["pooled"]):
        assert values["average_precision"] == pytest.approx(
            sk.average_precision_score(mask.ravel(), probability.ravel()), abs=1e-5
        )
    assert row["dice"] == pytest.approx(sk.f1_score(mask.ravel(), probability.ravel() > 0.5), abs=1e-12)
    # The boundary is thin enough to be another metric than the IoU, and a perfect prediction scores 1.
    assert abs(row["boundary_iou"] - row["iou"]) > 0.05
    perfect = metrics.update("perfect", None, mask.astype(np.float32), mask)
    assert {key: perfect[key] for key in METRICS} == {key: 0.0 if key in ERRORS else 1.0 for key in METRICS}
