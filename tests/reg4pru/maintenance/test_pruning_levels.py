"""The table of the levels of `reg4pru prune` holds what its records say."""

import json

from PIL import Image

from reg4pru.maintenance.pruning_levels import main


def write(folder, name: str, content: dict) -> None:
    folder.mkdir(parents=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def rows(accuracy: float, agreement: float, *more: float) -> dict:
    rates = {**dict.fromkeys(("0.7", "0.5", "0.3"), agreement), **dict.fromkeys(map(str, more), agreement)}
    return {rate: {"mean_iou": iou, "labels": {"average_precision": accuracy}} for rate, iou in rates.items()}


def test_levels_of_all_seeds_and_evaluations_beside_them(tmp_path):
    for seed in (0, 1):
        report = {
            "dense": {"labels": {"average_precision": 0.9 + 0.02 * seed}},
            "num_images": {"reported_on": 3},
            "processor_seconds": {"calibrated": 120, "distilled": 60},
            "agreement": {
                "untrained": rows(0.5, 0.4), "calibrated": rows(0.8, 0.7), "distilled": rows(0.85, 0.8, 1.0),
            },
        }  # fmt: skip
        write(tmp_path / "fives" / "distill" / f"seed-{seed}", "prune_results.json", report)
    again = {**report, "agreement": {"calibrated": rows(0.1, 0.1), "labelled": rows(0.89, 0.75)}}
    write(tmp_path / "fives" / "labels" / "seed-0", "prune_results.json", again)
    results = {rate: {"pooled": {"average_precision": 0.87}} for rate in ("1.0", "0.7", "0.5", "0.3")}
    metrics = {"results": results, "images": {"a": "", "b": ""}}
    write(tmp_path / "fives" / "default_recipe" / "seed-0", "metrics.json", metrics)
    beside = tmp_path / "fives" / "default_recipe" / "seed-0" / "agreement.json"
    beside.write_text(json.dumps({"mean_iou": dict.fromkeys(results, 0.77)}), encoding="utf-8")
    main(tmp_path)
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert "## fives" in lines
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines if " | " in line}
    dense, sd = "0.910 ± 0.014", " ± 0.000"
    accuracy, agreement = (
        tuple(f"{name} {rate}" for rate in ("1.0", "0.7", "0.5", "0.3")) for name in ("AP", "agreement")
    )
    assert cells["level"] == [*accuracy, *agreement, "minutes", "seeds", "images"]
    assert cells["none (random tokens)"][:2] == [dense, "0.500" + sd]
    assert cells["none (random tokens)"][-3:] == ["0", "2", "3"]
    both = [dense, *["0.800" + sd] * 3, "1.000" + sd, *["0.700" + sd] * 3]
    assert cells["calibrate"] == [*both, "2", "2", "3"]
    assert cells["distill"] == [*["0.850" + sd] * 4, *["0.800" + sd] * 4, "3", "2", "3"]
    assert cells["labels"][-2:] == ["1", "3"]
    assert cells["default recipe"] == [*["0.870"] * 4, *["0.770"] * 4, "–", "1", "2"]
    assert Image.open(tmp_path / "levels.png").width > 500


def test_columns_in_which_nothing_was_measured_are_left_out(tmp_path):
    results = {rate: {"pooled": {"average_precision": 0.87}} for rate in ("1.0", "0.7", "0.5", "0.3")}
    metrics = {"results": results, "images": {"a": ""}}
    write(tmp_path / "hrf" / "calibrated" / "seed-0", "metrics.json", metrics)
    main(tmp_path)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| level | AP 1.0 | AP 0.7 | AP 0.5 | AP 0.3 | seeds | images |" in table
