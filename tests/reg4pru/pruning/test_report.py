"""The report of `reg4pru prune`: verdict, accuracy by labels, and the speeds that a budget is chosen from."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from datasets_fives.metrics.class_metrics import ClassMetrics
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor, predict_image
from reg4pru.prune import main
from reg4pru.pruning.agreement import verdict


def read(folder) -> dict:
    return json.loads((folder / "prune_results.json").read_text(encoding="utf-8"))


def test_where_there_are_labels_the_report_says_what_is_lost_by_them(flags, labelled, tmp_path, capsys):
    main([*flags[:2], *flags[4:], "--dataset", str(labelled), "--report_side", "test", "--report_limit", "2"])
    results, out = read(tmp_path / "out"), tmp_path / "out"
    assert results["num_images"]["reported_on"] == 2
    model = Reg4PruForSemanticSegmentation.from_pretrained(out).eval()
    processor = Reg4PruImageProcessor.from_pretrained(out)
    wanted = {rate: ClassMetrics(["low", "middle", "high"]) for rate in (1.0, 0.4)}
    for name in ("20.png", "22.png"):  # spread evenly
        label_map = np.asarray(Image.open(labelled / "labels" / "test" / name))
        image = Image.open(labelled / "images" / "test" / name)
        for rate, metrics in wanted.items():
            metrics.update(predict_image(model, processor, image, rate).segmentation.numpy(), label_map)
    dense, pruned = results["dense"]["labels"], results["agreement"]["calibrated"]["0.4"]["labels"]
    assert dense["mean_iou"] == pytest.approx(wanted[1.0].compute()["mean_iou"])
    assert pruned["mean_iou"] == pytest.approx(wanted[0.4].compute()["mean_iou"])
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "| mean IoU, labels | change |" in table
    assert f"| {pruned['mean_iou']:.3f} | {pruned['mean_iou'] - dense['mean_iou']:+.3f} |" in table
    assert results["fingerprint"] in capsys.readouterr().out


def test_images_of_the_report_are_none_that_was_fitted_to(flags, labelled, tmp_path, capsys):
    (labelled / "images" / "test" / "20.png").write_bytes((labelled / "images" / "train" / "00.png").read_bytes())
    flags = [*flags[:2], *flags[4:], "--dataset", str(labelled), "--report_side", "test"]
    main(flags)  # the data set itself leaves such images out of the training side
    results = read(tmp_path / "out")
    assert results["num_images"]["reported_on"] == 3
    assert len(results["images"]) + 1 == 20 - 2  # a tenth validates, one is in the test images, too


@pytest.mark.parametrize("labels", [None, (0, 1, 2), (0, 7, 9)], ids=["none", "of the model", "others"])
def test_a_stored_data_set_is_taken_with_or_without_labels(flags, image_files, tmp_path, caplog, labels):
    rows = [{"image": Image.open(file), "name": file.stem} for file in sorted(image_files.iterdir())]
    draws = np.random.default_rng(0)
    if labels:
        for row in rows:
            row["mask"] = Image.fromarray(draws.choice(np.array(labels, dtype=np.uint8), (64, 96)))
    sides = {"train": Dataset.from_list(rows[:18]), "test": Dataset.from_list(rows[18:])}
    DatasetDict(sides).save_to_disk(tmp_path / "stored")
    flags = [*flags[:2], *flags[4:], "--dataset", str(tmp_path / "stored"), "--report_side", "test"]
    main([*flags, *(["--classes", "low", "middle", "high"] if labels else [])])
    assert ("labels" in read(tmp_path / "out")["dense"]) == (labels == (0, 1, 2))
    assert ("are not used" in caplog.text) == (labels == (0, 7, 9))


def test_a_budget_needs_no_tuning_after_pruning(flags, tmp_path):
    main(flags)
    results = read(tmp_path / "out")
    model = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "out")
    speed = model.read_speed()
    assert [row["keep_rates"] for row in speed["candidates"]] == [[1.0] * 3, [0.7] * 3, [0.4] * 3]
    assert speed["candidates"][0]["mean_iou"] == 1
    for rate, row in zip(("0.7", "0.4"), speed["candidates"][1:], strict=True):
        measured = results["agreement"]["calibrated"][rate]
        assert (row["milliseconds"], row["mean_iou"]) == (measured["milliseconds"], measured["mean_iou"])
    slowest = max(row["milliseconds"] for row in speed["candidates"])
    assert model.set_speed_budget(slowest + 1)["mean_iou"] == 1
    with pytest.raises(ValueError, match="the fastest that was measured"):
        model.set_speed_budget(min(row["milliseconds"] for row in speed["candidates"]) / 2)


def level(**by_rate: tuple[float, float]) -> dict[float, dict]:
    """Rows of a report: how many times as fast, and mean IoU, by keep rate in percent."""
    return {int(rate[1:]) / 100: {"times_dense": fast, "mean_iou": iou} for rate, (fast, iou) in by_rate.items()}


UNTRAINED = level(r70=(1.3, 0.5), r30=(1.6, 0.3))


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (level(r70=(1.0, 0.9), r30=(1.04, 0.8)), "Nothing was gained: at no keep rate"),
        (level(r70=(1.2, 0.4), r30=(1.5, 0.3)), "Nothing was gained: with what was fitted"),
        (level(r70=(1.0, 0.9), r30=(1.5, 0.2)), "Nothing was gained: where the pruned model is faster"),
        (level(r100=(1.1, 1.0), r70=(1.0, 0.9), r30=(1.5, 0.8)), "At keep rate 0.3 the model is 1.50 times as fast"),
        (level(r70=(1.2, 0.9), r30=(1.5, 0.8)), "At keep rate 0.7 the model is 1.20 times as fast"),
    ],
)
def test_the_verdict_says_whether_anything_was_gained(measured, said):
    assert verdict(measured, UNTRAINED, {}).startswith(said)


def test_the_verdict_tells_what_is_lost_by_labels():
    measured = level(r70=(1.2, 0.9), r30=(1.5, 0.8))
    measured[0.7]["labels"] = {"average_precision": 0.92}
    text = verdict(measured, UNTRAINED, {"labels": {"average_precision": 0.93}})
    assert text.endswith("By labels, average precision goes from 0.930 unpruned to 0.920.")
