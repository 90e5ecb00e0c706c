"""Whatever has happened to a folder of results, what it says after a run is true of the images as they are now."""

import csv
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_fives.images import fingerprint
from reg4pru.inference.input_images import InputImage
from reg4pru.inference.output_folder import KINDS, ResultFolder, Task
from reg4pru.inference.result_table import COLUMNS, append_row, read_table

NAMES = ("a.png", 'quo"te, comma.png', "new\nline.png")


def task_of(path: Path, rate: float | None = None) -> Task:
    return Task(InputImage(str(path), path.name, path.stem, lambda: path, str(path)), rate)


def predict(tasks: list[Task], out: Path) -> None:
    """A run whose masks show what the image holds."""
    results = ResultFolder(out)
    results.unless_busy(results.refuse_foreign_results, tasks, KINDS)
    with results.alone():
        results.refuse_foreign_results(tasks, KINDS)
        results.prepare(tasks, {"model_name_or_path": "x"}, KINDS, False)
        done = results.done(tasks)
        for task in tasks:
            if task.key not in done:
                content = task.image.read()
                results.begin(task)
                for kind in KINDS:
                    results.save(task.result(kind), np.full((1, 1), content[0], np.uint8))
                numbers = dict.fromkeys(COLUMNS[3:-1], "1")
                names = {"file": task.key[0], "keep_rate": task.key[1], "mask": task.result("mask")}
                results.add_row(names | numbers | {"fingerprint": fingerprint(content)})


def check(tasks: list[Task], out: Path) -> None:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = {task.result("mask"): task.image for task in tasks}
    assert sorted(row["mask"] for row in rows) == sorted(images)
    for row in rows:
        content = images[row["mask"]].read()
        assert row["fingerprint"] == fingerprint(content)
        assert {np.asarray(Image.open(out / row["mask"].replace("mask", kind))).item() for kind in KINDS} == {
            content[0]
        }


EVENTS = st.one_of(
    st.tuples(st.just("replace"), st.integers(0, 2), st.integers(0, 255)),
    st.tuples(st.just("cut"), st.integers(1, 400)),
    st.tuples(st.just("shift"), st.integers(0, 3)),
    st.tuples(st.just("twice"), st.integers(0, 3)),
    st.tuples(st.just("remove"), st.integers(0, 2)),
    st.tuples(st.just("garbage"), st.binary(max_size=20)),
    st.tuples(st.just("run"), st.integers(1, 3)),
    st.tuples(st.just("two runs at once"), st.integers(1, 3)),
)


def happen(event: tuple, tasks: list[Task], out: Path) -> None:
    table, kind, value = out / "predictions.csv", event[0], event[1]
    lines = table.read_bytes().splitlines(keepends=True) if table.exists() else []
    if kind == "run":
        predict(tasks[:value], out)
    elif kind == "two runs at once":
        with ThreadPoolExecutor(2) as writers:
            runs = [writers.submit(predict, some, out) for some in (tasks[:value], tasks[value - 1 :])]
        for run in runs:
            run.result()
    elif kind == "replace":
        Path(tasks[value].image.name).write_bytes(bytes([event[2]]))
    elif kind == "remove":
        (out / tasks[value].result("mask")).unlink(missing_ok=True)
    elif not lines:
        return
    elif kind == "cut":
        heading = b",".join(name.encode() for name in COLUMNS) + b"\n"
        table.write_bytes(heading + b"".join(lines[1:])[:-value])
    elif kind == "garbage":
        table.write_bytes(b"".join(lines) + value)
    else:  # a second writer, another version
        line = lines[min(value, len(lines) - 1)]
        table.write_bytes(b"".join(lines) + (b"x," + line if kind == "shift" else line))


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=6))
def test_whatever_happens_to_a_folder_nothing_false_is_in_it_after_a_run(events):
    with TemporaryDirectory() as folder:
        out, tasks = Path(folder, "out"), []
        out.mkdir()
        for place, name in enumerate(NAMES):
            Path(folder, name).write_bytes(bytes([place]))
            tasks.append(task_of(Path(folder, name)))
        predict(tasks[:2], out)
        try:
            for event in events:
                happen(event, tasks, out)
            predict(tasks, out)
        except ValueError as refused:  # a damaged name of a file is a name, too
            if "is that of" in str(refused) and "garbage" in {event[0] for event in events}:
                return
            raise
        check(tasks, out)


@pytest.mark.parametrize("rate", [0.5, None])
def test_no_keep_rate_keeps_what_was_predicted_of_an_image_that_was_replaced(out, tmp_path, caplog, rate):
    paths = [tmp_path / "x.png", tmp_path / "y.png"]
    for path in paths:
        path.write_bytes(b"1")
    predict([task_of(path, rate) for path in paths for rate in (0.5, 0.3, None)], out)
    paths[0].write_bytes(b"2")
    predict([task_of(path, rate) for path in paths], out)
    rows = ResultFolder(out).rows()
    key = task_of(paths[0], rate).key
    assert [(row["file"], row["keep_rate"]) for row in rows if row["fingerprint"] == fingerprint(b"2")] == [key]
    kept = [row for row in rows if row["fingerprint"] == fingerprint(b"1")]
    assert [row["file"] for row in kept] == [str(paths[1])] * 3
    assert {path.name for path in out.glob("*_mask*.png")} == {row["mask"] for row in rows}
    assert "Removed, because the image has been replaced and this run does not predict it: " in caplog.text
    assert f"{paths[0]} at 0.3" in caplog.text


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_one_run_at_a_time(out, caplog):
    ended = []

    def second() -> None:
        with ResultFolder(out).alone():
            ended.append("second")

    with ResultFolder(out).alone():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        ended.append("first")
    thread.join()
    assert ended == ["first", "second"]
    assert f"Another run is writing to {out}: waiting" in caplog.text


def test_another_path_or_folder_of_the_same_image_is_not_foreign(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(b"1")
    relative = Task(InputImage("x.png", "x.png", "x", lambda: Path("x.png"), str(tmp_path / "x.png")), None)
    predict([relative], out)
    stamp = (out / "x_mask.png").stat().st_mtime_ns
    predict([task_of(tmp_path / "x.png")], out)
    (tmp_path / "moved").mkdir()
    Path("x.png").rename("moved/x.png")
    predict([task_of(tmp_path / "moved" / "x.png")], out)
    assert (out / "x_mask.png").stat().st_mtime_ns == stamp
    (found,) = ResultFolder(out).rows_of([task_of(tmp_path / "moved" / "x.png").image])
    assert found[1]["file"] == "x.png"
    (tmp_path / "moved" / "x.png").write_bytes(b"2")
    with pytest.raises(ValueError, match=r"is that of x.png"):
        predict([task_of(tmp_path / "moved" / "x.png")], out)
    assert not ResultFolder(out).rows_of([task_of(tmp_path / "moved" / "x.png").image])


def test_a_table_without_fingerprints_is_gone_on_with(out, tmp_path):
    (tmp_path / "x.png").write_bytes(b"1")
    task = task_of(tmp_path / "x.png")
    predict([task], out)
    table, stamp = out / "predictions.csv", (out / "x_mask.png").stat().st_mtime_ns
    former = [line.rsplit(",", 1)[0] for line in table.read_text().splitlines()]
    table.write_text("".join(f"{line}\n" for line in former))
    (tmp_path / "y.png").write_bytes(b"2")
    predict([task, task_of(tmp_path / "y.png")], out)
    assert (out / "x_mask.png").stat().st_mtime_ns == stamp
    rows, clean = read_table(table)
    assert clean
    assert [row["fingerprint"] for row in rows] == ["unknown", fingerprint(b"2")]


def test_a_row_that_cannot_be_written_leaves_no_part(out, monkeypatch):
    table = out / "predictions.csv"
    append_row(table, dict.fromkeys(COLUMNS, "1"))
    before = table.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        append_row(table, dict.fromkeys(COLUMNS, "\udcfc"))
    assert table.read_bytes() == before
