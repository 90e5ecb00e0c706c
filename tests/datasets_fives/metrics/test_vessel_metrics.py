import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import datasets_fives.metrics.vessel_metrics
from datasets_fives.metrics.accumulator import VesselMetrics
from datasets_fives.metrics.space import write_space

SCRIPT = datasets_fives.metrics.vessel_metrics.__file__


@pytest.fixture
def load(load_module):
    return functools.partial(load_module, SCRIPT)


def images() -> dict[str, list]:
    """Three images of two sizes."""
    rng = np.random.default_rng(0)
    columns = {"names": ["1_A", "2_A", "1_G"], "conditions": ["A", "A", "G"], "predictions": [], "references": []}
    for shape in ((24, 32), (24, 32), (40, 16)):
        mask = np.zeros(shape, dtype=np.uint8)
        mask[:, 6:10] = 1
        columns["references"].append(mask)
        columns["predictions"].append(np.clip(rng.normal(0.3 + 0.4 * mask, 0.2), 0, 1).astype(np.float32))
    columns["groups"] = [{"blur": "0"}, {"blur": "1"}, None]
    columns["fields_of_view"] = [np.arange(m.shape[0])[:, None] < np.full(m.shape, 20) for m in columns["references"]]
    return columns


def direct(columns: dict[str, list], **settings) -> dict:
    metrics = VesselMetrics(**settings)
    keys = ("names", "conditions", "predictions", "references", "fields_of_view", "groups")
    for image in zip(*(columns[key] for key in keys), strict=True):
        metrics.update(*image)
    return metrics.compute()


# nan is not equal to nan, its text is.
def assert_same(one: dict, other: dict) -> None:
    assert str(one) == str(other)


def test_compute_add_and_add_batch_equal_vessel_metrics(load):
    module, columns = load(), images()
    assert_same(module.compute(**columns), direct(columns))

    module.add_batch(**{key: column[:2] for key, column in columns.items()})
    singular = ("name", "condition", "prediction", "reference", "field_of_view", "groups")
    keys = ("names", "conditions", "predictions", "references", "fields_of_view", "groups")
    module.add(**{one: columns[many][2] for one, many in zip(singular, keys, strict=True)})
    assert len(module) == 3
    assert_same(module.compute(), direct(columns))
    assert len(module) == 0


def test_plain_evaluate_use(load):
    """Only predictions and references, as arrays or as lists, in batches and in one call."""
    module, columns = load(), images()
    reference = direct(
        {
            **columns,
            "names": ["0", "1", "2"],
            "conditions": [None] * 3,
            "fields_of_view": [None] * 3,
            "groups": [None] * 3,
        },
    )
    module.add_batch(predictions=np.stack(columns["predictions"][:2]), references=np.stack(columns["references"][:2]))
    module.add_batch(predictions=columns["predictions"][2:], references=columns["references"][2:])
    assert_same(module.compute(), reference)
    as_lists = {key: [image.tolist() for image in columns[key]] for key in ("predictions", "references")}
    assert module.compute(**as_lists)["pooled"] == pytest.approx(reference["pooled"], abs=1e-6)
    assert set(module.features) == {"predictions", "references"}
    assert "fields_of_view" in module.inputs_description


def test_settings_reach_the_metrics(load):
    module, columns = load(threshold=0.3, boundary_width=2), images()
    result = module.compute(**columns)
    assert_same(result, direct(columns, threshold=0.3, boundary_width=2))
    assert result["pooled"]["dice"] != direct(columns)["pooled"]["dice"]


def test_bad_calls_are_refused_and_add_nothing(load):
    module, columns = load(), images()
    with pytest.raises(ValueError, match="No image was measured"):
        module.compute()
    with pytest.raises(ValueError, match="references are missing"):
        module.compute(predictions=columns["predictions"])
    with pytest.raises(ValueError, match="3 predictions, but 2 references"):
        module.add_batch(predictions=columns["predictions"], references=columns["references"][:2])
    broken = [*columns["references"][:2], columns["references"][2] * 255]
    with pytest.raises(ValueError, match="2: the mask is not binary"):
        module.add_batch(predictions=columns["predictions"], references=broken)
    assert len(module) == 0
    with pytest.raises(ValueError, match="num_process is 2"):
        load(num_process=2, process_id=0)


class Space(http.server.SimpleHTTPRequestHandler):
    """A Hub with one Space: `<hub>/spaces/<user>/<name>/resolve/<revision>/<file>`."""

    def translate_path(self, path: str) -> str:
        start = "/spaces/someone/vessel_metrics/resolve/main/"
        name = path.removeprefix(start) if path.startswith(start) else "missing"
        return super().translate_path("/" + name)

    def end_headers(self) -> None:
        self.send_header("ETag", '"1"')
        super().end_headers()

    def log_message(self, *args) -> None:
        pass


FOREIGN = """
import sys
import evaluate
module = evaluate.load(sys.argv[1])
assert "datasets_fives" not in sys.modules
mask = [[0, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0]]
prediction = [[0.1, 0.2, 0.9, 0.3], [0.1, 0.6, 0.8, 0.2], [0.0, 0.4, 0.7, 0.1]]
print(module.compute(predictions=[prediction], references=[mask])["pooled"])
"""


OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")  # set for the tests in this process


def load_elsewhere(path: str, tmp_path: Path, endpoint: str) -> str:
    """What a process prints that has only the files of the Space, and begins with empty caches."""
    home = tmp_path / "home"
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    for name in ("PYTHONPATH", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_METRICS_CACHE", *OFFLINE):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, path], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def hand_made() -> str:
    mask = np.array([[0, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0]])
    prediction = np.array([[0.1, 0.2, 0.9, 0.3], [0.1, 0.6, 0.8, 0.2], [0.0, 0.4, 0.7, 0.1]])
    metrics = VesselMetrics()
    metrics.update("0", None, prediction, mask)
    return str(metrics.compute()["pooled"])


def test_from_a_space_in_another_process(tmp_path):
    folder = write_space(tmp_path / "space", "someone/vessel_metrics")
    handler = functools.partial(Space, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        printed = load_elsewhere("someone/vessel_metrics", tmp_path, endpoint)
        server.shutdown()
    assert printed == hand_made()


def test_space_has_a_card_and_overwrites_nothing(tmp_path):
    folder = write_space(tmp_path / "space", "someone/vessel_metrics")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\ntitle: Vessel metrics\n")
    assert 'evaluate.load("someone/vessel_metrics")' in card
    assert "<user>" not in card
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "accumulator.py",
        "image_counts.py",
        "index.html",
        "requirements.txt",
        "vessel_metrics.py",
    }
    with pytest.raises(ValueError, match="is not empty"):
        write_space(folder, "someone/vessel_metrics")
    with pytest.raises(ValueError, match="must be '<user>/vessel_metrics' or"):
        write_space(tmp_path / "other", "someone/metrics")
    assert not (tmp_path / "other").exists()
