import numpy as np
import pytest

import datasets_fives.metrics.segmentation_metrics
from datasets_fives.metrics import ClassMetrics
from datasets_fives.metrics.space import write_space

SCRIPT = datasets_fives.metrics.segmentation_metrics.__file__
NAMES = ["road", "sky", "tree"]


def images() -> dict[str, list]:
    """Three images of two sizes."""
    rng, columns = np.random.default_rng(0), {"predictions": [], "references": []}
    for shape in ((24, 32), (24, 32), (40, 16)):
        labels = rng.integers(0, 3, shape)
        columns["predictions"].append(np.where(rng.random(shape) < 0.2, 1, labels))
        labels[:2] = 255
        columns["references"].append(labels)
    return columns


def direct(columns: dict[str, list]) -> dict:
    metrics = ClassMetrics(NAMES)
    for predicted, labels in zip(*columns.values(), strict=True):
        metrics.update(predicted, labels)
    return metrics.compute()


def test_compute_add_and_add_batch_equal_class_metrics(load_module):
    module, columns = load_module(SCRIPT, class_names=NAMES), images()
    assert module.compute(**columns) == direct(columns)
    module.add_batch(**{key: column[:2] for key, column in columns.items()})
    module.add(prediction=columns["predictions"][2].tolist(), reference=columns["references"][2].tolist())
    assert len(module) == 3
    assert module.compute() == direct(columns)
    assert len(module) == 0


def test_bad_calls_are_refused_and_add_nothing(load_module):
    module, columns = load_module(SCRIPT, class_names=NAMES), images()
    with pytest.raises(ValueError, match="No image was measured"):
        module.compute()
    with pytest.raises(ValueError, match="references are missing"):
        module.compute(predictions=columns["predictions"])
    with pytest.raises(ValueError, match="3 predictions, but 2 references"):
        module.add_batch(predictions=columns["predictions"], references=columns["references"][:2])
    with pytest.raises(ValueError, match="A label map has the values 7"):
        module.add_batch(
            predictions=columns["predictions"][:2], references=[columns["references"][0], [[7] * 32] * 24]
        )
    assert len(module) == 0
    with pytest.raises(ValueError, match="num_process is 2"):
        load_module(SCRIPT, class_names=NAMES, num_process=2, process_id=0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        load_module(SCRIPT)


def test_the_files_of_a_space_are_enough(load_module, tmp_path):
    folder = write_space(tmp_path / "segmentation_metrics", "someone/segmentation_metrics")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "class_metrics.py", "index.html", "requirements.txt", "segmentation_metrics.py",
    }  # fmt: skip
    assert 'evaluate.load("someone/segmentation_metrics", class_names' in (folder / "README.md").read_text()
    assert "torchmetrics" in (folder / "requirements.txt").read_text()
    module = load_module(str(folder / "segmentation_metrics.py"), class_names=NAMES)
    assert module.compute(**images()) == direct(images())
