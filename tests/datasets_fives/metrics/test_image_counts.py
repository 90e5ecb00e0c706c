"""Cases small enough to count on paper, undefined values and refused input."""

import math

import numpy as np
import pytest

from datasets_fives.metrics.accumulator import ERRORS, METRICS, VesselMetrics


def bar(rows: slice, columns: slice, shape: tuple[int, int] = (12, 24)) -> np.ndarray:
    image = np.zeros(shape, dtype=bool)
    image[rows, columns] = True
    return image


def measure(prediction: np.ndarray, mask: np.ndarray, inside: np.ndarray | None = None, **settings) -> dict:
    return VesselMetrics(**settings).update("x", None, prediction.astype(np.float32), mask, inside)


def test_boundary_iou_of_two_shifted_squares():
    # 6 × 6 squares, one column apart. Width 1: rings of 20 pixels. The rings share the 5 columns of the top and of the
    # bottom row where the squares overlap, and no upright side: 10 of 30.
    one, other = bar(slice(3, 9), slice(4, 10)), bar(slice(3, 9), slice(5, 11))
    assert measure(one, other, boundary_width=1)["boundary_iou"] == pytest.approx(10 / 30)
    # Width 2: rings of 36 - 4 = 32; of the 30 common pixels, the inner 2 × 2 of one (2 columns) and of the other
    # (shifted by one: 3 columns together) are 2 × 3 = 6: 24 of 40.
    assert measure(one, other, boundary_width=2)["boundary_iou"] == pytest.approx(24 / 40)
    # Width 3 and more: the squares themselves, 30 of 42.
    assert measure(one, other, boundary_width=3)["boundary_iou"] == pytest.approx(30 / 42)
    assert measure(one, other, boundary_width=3)["iou"] == pytest.approx(30 / 42)


def test_default_boundary_width_follows_the_image():
    def eroded_area(side):
        mask = np.zeros((20, side), dtype=bool)
        mask[5:15, 10:20] = True
        prediction = np.zeros_like(mask)
        prediction[4:16, 9:21] = True  # one pixel larger all round: rings of width 1 are disjoint, of width 2 are not
        return measure(prediction, mask)["boundary_iou"]

    assert eroded_area(1000) == 0
    assert eroded_area(2048) > 0.2


def test_centre_line_metrics_forgive_width_but_not_gaps():
    thin, wide = bar(slice(5, 6), slice(2, 22)), bar(slice(4, 7), slice(2, 22))
    row = measure(wide, thin)
    assert row["centerline_recall"] == 1
    # The wide bar's skeleton has 19 pixels: 18 on the thin bar and one that turns into a corner.
    assert row["cldice"] == pytest.approx(2 * (18 / 19) / (1 + 18 / 19))
    assert row["precision"] == pytest.approx(20 / 60)
    broken = thin.copy()
    broken[:, 10:15] = False
    row = measure(broken, thin)
    assert row["centerline_recall"] == pytest.approx(15 / 20)
    assert row["cldice"] == pytest.approx(2 * 0.75 / 1.75)


def test_skeletons_are_restricted_not_cut_by_the_field():
    # The field shows part of the upper row of a vessel three pixels wide, whose centre line lies just outside. Cut
    # first, that row would be a vessel with a skeleton of its own.
    vessel, field = bar(slice(4, 7), slice(2, 22)), bar(slice(0, 5), slice(4, 18))
    row = measure(vessel, vessel, field)
    assert row["dice"] == 1
    assert math.isnan(row["centerline_recall"])
    assert math.isnan(row["cldice"])


def test_threshold_itself_is_background():
    mask = bar(slice(0, 2), slice(0, 4))
    assert VesselMetrics().update("x", None, np.where(mask, 0.5, 0.0), mask)["recall"] == 0
    assert VesselMetrics().update("x", None, np.where(mask, np.nextafter(0.5, 1), 0.0), mask)["recall"] == 1


def test_matthews_of_sixteen_pixels():
    mask, prediction = bar(slice(0, 1), slice(0, 4), (4, 4)), bar(slice(0, 1), slice(1, 4), (4, 4))
    prediction[3, 3] = True
    # TP 3, FN 1, FP 1, TN 11: (3·11 - 1·1) / sqrt(4·4·12·12) = 32 / 48.
    assert measure(prediction, mask)["mcc"] == pytest.approx(32 / 48)
    assert measure(~mask, mask)["mcc"] == -1


def test_components_and_holes_are_counted():
    ring = bar(slice(2, 8), slice(2, 8)) & ~bar(slice(3, 7), slice(3, 7))
    dots = bar(slice(2, 3), slice(12, 13)) | bar(slice(3, 4), slice(13, 14)) | bar(slice(8, 9), slice(20, 21))
    row = measure(ring, dots)  # one piece with a hole; two dots that touch at a corner are one piece, so two
    assert (row["betti0_error"], row["betti1_error"]) == (1, 1)
    gap = ring.copy()
    gap[2, 4] = False
    assert measure(gap, ring)["betti1_error"] == 1
    assert measure(gap, ring)["betti0_error"] == 0
    corner = ring.copy()
    corner[2, 2] = False  # the hole does not leak through a corner
    assert measure(corner, ring)["betti1_error"] == 0
    # What touches the border of the image encloses nothing; cut by the field, the ring does neither.
    edge = bar(slice(0, 4), slice(0, 5)) & ~bar(slice(0, 3), slice(1, 4))
    assert measure(edge, EMPTY)["betti1_error"] == 0
    field = bar(slice(0, 12), slice(0, 5))
    assert measure(ring, EMPTY, field)["betti1_error"] == 0
    assert measure(ring, EMPTY, field)["betti0_error"] == 1


def test_calibration_error_of_two_bins():
    # 4 pixels of 0.9, 3 of them vessel: |0.9 - 0.75|; 4 of 0.1, 1 of them vessel: |0.1 - 0.25|.
    probability = np.repeat([0.9, 0.1], 4).reshape(2, 4)
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], dtype=bool)
    metrics = VesselMetrics()
    assert metrics.update("x", None, probability, mask)["calibration_error"] == pytest.approx(0.15)
    # The opposite faults of another image make up for them when pooled, and do not per image.
    metrics.update("y", None, probability, np.array([[1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool))
    result = metrics.compute()
    # Pooled: 7 of 8 at 0.9, 1 of 8 at 0.1.
    assert result["pooled"]["calibration_error"] == pytest.approx(0.025)
    assert result["per_image"]["calibration_error"]["mean"] == pytest.approx((0.15 + 0.1) / 2)


def test_best_threshold_lies_between_what_it_parts():
    metrics = VesselMetrics()
    probability = np.array([[0.1, 0.2, 0.2, 0.3]])
    metrics.update("x", None, probability, np.array([[0, 1, 0, 1]], dtype=bool))
    result = metrics.compute()
    assert result["best_dice"] == pytest.approx(4 / 5)  # 0.2 and above: three predicted, two of two found
    assert 0.1 < result["best_threshold"] < 0.2
    empty = VesselMetrics()
    empty.update("x", None, probability, np.zeros((1, 4)))
    assert math.isnan(empty.compute()["best_threshold"])


EMPTY = np.zeros((12, 24), dtype=bool)
VESSEL = bar(slice(4, 7), slice(2, 22))


def test_nothing_there_and_nothing_predicted():
    row = measure(EMPTY, EMPTY)
    assert all(row[key] == 0 for key in ERRORS)
    assert all(math.isnan(row[key]) for key in set(METRICS) - set(ERRORS))


def test_nothing_there_but_something_predicted():
    row = measure(VESSEL, EMPTY)
    undefined = {key for key in METRICS if math.isnan(row[key])}
    assert undefined == {"recall", "centerline_recall", "average_precision", "auroc"}
    assert all(row[key] == 0 for key in set(METRICS) - undefined - set(ERRORS))
    assert (row["betti0_error"], row["betti1_error"]) == (1, 0)
    assert row["calibration_error"] == pytest.approx(60 / 288)  # the pixels that are certain, and wrong


def test_something_there_but_nothing_predicted():
    row = VesselMetrics().update("x", None, np.where(VESSEL, 0.2, 0.1), VESSEL)
    assert row["average_precision"] == row["auroc"] == 1
    assert all(row[key] == 0 for key in set(METRICS) - {"average_precision", "auroc", *ERRORS})
    assert row["betti0_error"] == 1


def test_everything_is_vessel():
    row = measure(np.ones((12, 24)), np.ones((12, 24), dtype=bool))
    assert math.isnan(row["auroc"])
    assert math.isnan(row["mcc"])
    assert all(row[key] == (0 if key in ERRORS else 1) for key in set(METRICS) - {"auroc", "mcc"})


def test_undefined_images_are_left_out_of_the_means_and_counted():
    metrics = VesselMetrics()
    metrics.update("122_G", "G", EMPTY.astype(np.float32), EMPTY)
    metrics.update("1_G", "G", VESSEL.astype(np.float32), VESSEL)
    result = metrics.compute()
    assert result["num_images"] == 2
    for key in ERRORS:
        assert result["pooled"][key] == result["per_image"][key]["mean"] == 0
        assert result["per_image"][key]["num_images"] == 2
    for key in set(METRICS) - set(ERRORS):
        assert result["pooled"][key] == 1
        assert result["per_image"][key]["mean"] == 1
        assert result["per_image"][key]["num_images"] == 1
        assert math.isnan(result["per_image"][key]["sd"])


def test_half_precision_is_ranked_as_its_values():
    rng = np.random.default_rng(0)
    probability = rng.random((40, 40)).astype(np.float16)
    mask = rng.random((40, 40)) < probability
    half, single = VesselMetrics(), VesselMetrics()
    half.update("x", None, probability, mask)
    single.update("x", None, probability.astype(np.float32), mask)
    assert half.compute() == single.compute()


GOOD = np.full((4, 4), 0.5)
MASK = np.eye(4, dtype=bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.where(MASK, np.nan, GOOD), MASK), "7_D: the probabilities go from nan to nan"),
        ((GOOD + 0.6, MASK), r"7_D: the probabilities go from 1.1 to 1.1, allowed is 0 to 1"),
        ((GOOD - 0.6, MASK), "7_D: the probabilities go from -0.0999"),
        ((GOOD, MASK[:3]), r"7_D: the mask is \(3, 4\), the probabilities are \(4, 4\)"),
        ((GOOD[None], MASK), r"7_D: the probabilities have shape \(1, 4, 4\)"),
        ((GOOD[:0], MASK[:0]), r"7_D: the probabilities have shape \(0, 4\)"),
        ((GOOD.astype(str), MASK), "7_D: the probabilities are of type"),
        ((GOOD, MASK * 255), "7_D: the mask is not binary: it goes from 0 to 255"),
        ((GOOD, MASK * 0.5), "7_D: the mask is not binary"),
        ((GOOD, MASK, MASK[:, :2]), r"7_D: the field of view is \(4, 2\)"),
        ((GOOD, MASK, MASK * 2), "7_D: the field of view is not binary"),
        ((GOOD, MASK, ~(MASK | True)), "7_D: the field of view is empty"),
    ],
)
def test_bad_images_are_refused_and_change_nothing(arguments, message):
    metrics = VesselMetrics()
    metrics.update("1_D", "D", GOOD, MASK)
    before = str(metrics.compute())  # as text, for nan equals nan there
    with pytest.raises(ValueError, match=message):
        metrics.update("7_D", "D", *arguments)
    assert str(metrics.compute()) == before


def test_name_twice_is_refused():
    metrics = VesselMetrics()
    metrics.update("1_D", "D", GOOD, MASK)
    with pytest.raises(ValueError, match="1_D was measured already"):
        metrics.update("1_D", "D", GOOD, MASK)


@pytest.mark.parametrize(
    "settings", [{"threshold": 0}, {"threshold": 1.0}, {"num_bins": 1}, {"boundary_width": 0}, {"threshold": math.nan}]
)
def test_bad_settings_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} is"):
        VesselMetrics(**settings)


def test_compute_before_update_is_refused():
    with pytest.raises(ValueError, match="No image was measured"):
        VesselMetrics().compute()
