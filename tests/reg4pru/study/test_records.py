"""Records under `results/`, of earlier versions too, are still read, and the tables beside them follow from them."""

import csv
import json
import math

import pytest
import yaml

from datasets_fives.metrics import METRICS
from modeling_reg4pru.speed_budget import per_image
from reg4pru.benchmarking.report import attention_table, engine_table, inference_table, training_table
from reg4pru.benchmarking.tuning import speed_markdown
from reg4pru.common.former_names import FORMER_NAMES
from reg4pru.common.recipes import PACKAGE
from reg4pru.maintenance.render_readme import REPOSITORY
from reg4pru.study import cost, evaluation, tables, unet
from reg4pru.study.definition import AS_TRAINED, Study, read_study
from reg4pru.study.evaluation import read_images
from reg4pru.study.metrics import CLASSES
from reg4pru.study.paired import collect_images, paired_markdown, write_images
from reg4pru.study.run_folder import RunFolder
from reg4pru.study.tables import collect, markdown, write_csv
from reg4pru.study.whole_images import Way, results_table

RESULTS = REPOSITORY / "results"
# The variants of which there are records, where they are not all.
SHOWN = {
    "pretrained": ["dense", "soft", "reg4pru", "hard", "learned_query", "distill_mlp", "distill_drift"],
    "camvid": ["dense", "soft", "reg4pru", "learned_query", "default", "context4"],
    "camvid_race": ["dense", "pruned", "patch_28", "layers_8", "reduced_336"],
}
RUNS = sorted(path.parent.relative_to(RESULTS) for path in RESULTS.glob("*/runs/*/*/recipe.yaml"))


@pytest.fixture
def recorded(monkeypatch):
    """Reads a study as it was when its runs were recorded: with these folders."""
    for name in ("fives", "hrf", "camvid"):
        monkeypatch.setenv(f"{name.upper()}_DIR", f"../shared/{name}")
    monkeypatch.setenv("DINOV2_DIR", ".venv/dinov2_small")

    def read(name: str) -> Study:
        return read_study(PACKAGE / "studies" / f"{name}.yaml").part(SHOWN.get(name))

    return read


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_every_run_is_read(recorded, run):
    name, _, variant, seed = run.parts
    folder = RunFolder(RESULTS / name / "runs", variant, int(seed.removeprefix("seed-")))
    assert folder.is_trained
    study, number = read_study(PACKAGE / "studies" / f"{name}.yaml"), int(seed.removeprefix("seed-"))
    of_unet = variant == unet.VARIANT
    folder.check_recipe(unet.unet_recipe(study, number) if of_unet else study.run_recipe(variant, number))
    model, data, training = folder.arguments()
    assert model.backbone_name_or_path == ("" if of_unet else ".venv/dinov2_small")
    of_classes = name.startswith("camvid")
    assert data.working_size in ((480, 336) if of_classes else (1024, 860, 724))
    assert training.seed == number
    images = read_images(folder)
    for evaluated, rates in folder.results().items():
        for rate, pooled in rates.items():
            assert {row["name"] for row in images[evaluated, rate]}
            assert pooled.keys() <= (
                {*CLASSES.compared} | {f"iou_{each}" for each in data.classes} if of_classes else {*METRICS}
            )
            assert 0 < pooled["mean_iou" if of_classes else "average_precision"] < 1


@pytest.mark.parametrize("name", ["pretrained", "pretrained_336", "race", "camvid", "camvid_long", "camvid_race"])
def test_the_tables_of_a_study_follow_from_its_runs(recorded, tmp_path, name):
    study, runs = recorded(name), RESULTS / name / "runs"
    rows = collect(study, runs)
    assert markdown(study, rows) == (RESULTS / name / "table.md").read_text()
    write_csv(tmp_path / "table.csv", rows)
    assert (tmp_path / "table.csv").read_bytes() == (RESULTS / name / "table.csv").read_bytes()
    images = collect_images(study, runs)
    write_images(tmp_path / "per_image.csv", images)
    assert (tmp_path / "per_image.csv").read_bytes() == (RESULTS / name / "per_image.csv").read_bytes()
    if name == "pretrained_336":  # the bootstrap of the others takes a while
        assert paired_markdown(study, images) == (RESULTS / name / "paired.md").read_text()


def test_a_metric_that_a_record_does_not_have_is_undefined(recorded, monkeypatch, tmp_path):
    study, runs = recorded("pretrained_336"), RESULTS / "pretrained_336" / "runs"
    for module in (evaluation, tables):
        monkeypatch.setattr(module, "METRICS", (*METRICS, "hausdorff"))
    monkeypatch.setattr(tables, "FIELDS", (*tables.FIELDS, "hausdorff"))
    rows = collect(study, runs)
    assert all(math.isnan(row["hausdorff"]) for row in rows)
    assert markdown(study, rows) == (RESULTS / "pretrained_336" / "table.md").read_text()
    write_csv(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open(newline="") as file:
        assert {row["hausdorff"] for row in csv.DictReader(file)} == {"nan"}
    images = read_images(RunFolder(runs, "soft", 0))[AS_TRAINED, "0.5"]
    assert all(math.isnan(image["hausdorff"]) and image["dice"] > 0 for image in images)


def test_recorded_costs_count_for_a_part_of_the_study(recorded, monkeypatch):
    monkeypatch.setattr(cost, "_training", lambda *_: pytest.fail("costs are measured"))
    runs, study = RESULTS / "race" / "runs", recorded("race")
    measured = cost.measure_study(study, runs, rounds=1)
    assert measured["inference"].keys() == {*study.variants, unet.VARIANT}
    assert cost.measure_study(study.part(["dense", "pruned_860"]), runs, rounds=1) == measured
    with pytest.raises(pytest.fail.Exception):  # relative to another variant
        cost.measure_study(study.part(["pruned", "pruned_860"]), runs, rounds=1)


def former(name: str) -> str:
    """A field or setting as versions before the first release called it."""
    for before, today in FORMER_NAMES.items():
        name = name.replace(today, before)
    return name


def test_a_run_with_former_names_is_the_same_run(recorded, tmp_path):
    study, runs = recorded("race"), RESULTS / "race" / "runs"
    here, there = RunFolder(runs, "pruned_860", 0), RunFolder(tmp_path, "pruned_860", 0)
    there.training.mkdir(parents=True)
    recipe = yaml.safe_load(here.recipe.read_text())
    there.recipe.write_text(yaml.safe_dump({former(name): value for name, value in recipe.items()}))
    assert "working_size" not in there.recipe.read_text()
    measured = {former(f"working_size={number}"): rates for number, rates in enumerate(here.results().values())}
    there.evaluation.write_text(json.dumps(measured))
    there.per_image.write_text(here.per_image.read_text().replace("as trained", former("working_size=0")))
    there.check_recipe(study.run_recipe("pruned_860", 0))
    assert there.arguments()[1].working_size == 860
    assert there.results()["working_size=0"] == here.results()[AS_TRAINED]
    assert read_images(there)["working_size=0", "0.5"] == read_images(here)[AS_TRAINED, "0.5"]


def read_json(*parts: str) -> dict:
    return json.loads(RESULTS.joinpath(*parts).read_text())


@pytest.mark.parametrize("name", ["benchmark-cpu", "benchmark-cpu-512", "benchmark-cpu-training"])
def test_benchmarks_are_read(name):
    record = read_json(name, "benchmark.json")
    parts = [inference_table(record["inference"])] if record["inference"] else []
    if record["training"]:
        parts += [training_table(record["training"], record["training_skipped"])]
        parts += [attention_table(record["policy_attention"])]
    assert (RESULTS / name / "table.md").read_text() == "\n\n".join(parts) + "\n"


def test_tables_of_whole_images_follow_from_their_records():
    records = [path for path in RESULTS.rglob("whole_images.json") if "cldice" in path.read_text()]
    assert records
    for path in records:
        ways = {}
        for label, measured in json.loads(path.read_text())["ways"].items():
            ways[label] = Way(measured["checkpoint"])
            vars(ways[label]).update(
                measured, quality={name: measured[name] for name in ("average_precision", "cldice")}
            )
        assert (path.parent / "table.md").read_text().endswith(f"\n\n{results_table(ways)}\n")


@pytest.mark.parametrize("name", ["engines", "engines-1024"])
def test_comparisons_of_engines_are_read(name):
    assert (RESULTS / name / "table.md").read_text() == engine_table(read_json(name, "engines.json")) + "\n"


def test_speeds_are_read():
    speed = per_image(read_json("tune", "speed.json"))
    assert (RESULTS / "tune" / "speed.md").read_text() == speed_markdown(speed) + "\n"
