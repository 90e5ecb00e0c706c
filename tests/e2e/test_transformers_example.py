"""
transformers' own example script for semantic segmentation with Trainer, unmodified, on three classes.

It is not part of any distribution: RUN_SEMANTIC_SEGMENTATION is the path of
examples/pytorch/semantic-segmentation/run_semantic_segmentation.py of a release near the installed one. It needs
albumentations.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modeling_reg4pru import Reg4PruImageProcessor

pytestmark = [pytest.mark.hub, pytest.mark.timeout(900)]

# Discs and squares on a background, and id2label.json beside them, as the script wants it.
MAKE_SHAPES = """
import json
import numpy as np
from datasets import Dataset, DatasetDict, Features, Image
from huggingface_hub import HfApi
rows, columns = np.mgrid[:80, :80]
def example(seed):
    rng = np.random.default_rng(seed)
    label = np.zeros((80, 80), np.uint8)
    (y, x), (v, u) = rng.integers(15, 65, (2, 2))
    label[(rows - y) ** 2 + (columns - x) ** 2 < 150] = 1
    label[max(v - 10, 0) : v + 10, max(u - 10, 0) : u + 10] = 2
    image = np.array([(40, 40, 40), (220, 60, 60), (60, 60, 220)])[label] + rng.normal(0, 10, (80, 80, 3))
    return {"image": np.clip(image, 0, 255).astype(np.uint8), "label": label}
features = Features({"image": Image(), "label": Image()})
sides = {side: Dataset.from_list([example(seed) for seed in seeds], features=features)
         for side, seeds in (("train", range(16)), ("validation", range(16, 20)))}
DatasetDict(sides).push_to_hub("tester/shapes")
labels = json.dumps({0: "background", 1: "disc", 2: "square"}).encode()
HfApi().upload_file(path_or_fileobj=labels, path_in_repo="id2label.json", repo_id="tester/shapes", repo_type="dataset")
"""
# The metric of its name comes from the Hub; a folder of that name goes before.
MEAN_IOU = """
import datasets
import evaluate
import numpy as np
class MeanIoU(evaluate.Metric):
    def _info(self):
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(
            {"predictions": maps, "references": maps}))
    def _compute(self, predictions, references, num_labels, ignore_index, reduce_labels):
        predictions, references = np.array(predictions), np.array(references)
        counts = references != 255
        iou, accuracy = [], []
        for label in range(num_labels):
            found, true = (predictions == label) & counts, references == label
            iou.append((found & true).sum() / max(1, (found | true).sum()))
            accuracy.append((found & true).sum() / max(1, true.sum()))
        return {"mean_iou": float(np.mean(iou)), "per_category_iou": np.array(iou),
                "per_category_accuracy": np.array(accuracy)}
"""


@pytest.fixture
def script() -> Path:
    path = os.environ.get("RUN_SEMANTIC_SEGMENTATION")
    if not path:
        pytest.skip("RUN_SEMANTIC_SEGMENTATION, the path of transformers' example script, is not set")
    if importlib.util.find_spec("albumentations") is None:
        pytest.skip("albumentations, which the example script imports, is not installed")
    return Path(path)


def test_it_fine_tunes_our_checkpoint_to_three_classes(script, hub, run_client, tiny_model, tmp_path):
    run_client(MAKE_SHAPES)
    labels = {0: "background", 1: "disc", 2: "square"}
    start = tiny_model(num_queries=6, id2label=labels, masked_attention=False, initializer_range=0.02)
    start.save_pretrained(tmp_path / "start")
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, num_labels=3)
    processor.save_pretrained(tmp_path / "start")
    (tmp_path / "mean_iou").mkdir()
    (tmp_path / "mean_iou" / "mean_iou.py").write_text(MEAN_IOU)

    run_client(
        ["python", str(script), "--model_name_or_path", str(tmp_path / "start"), "--trust_remote_code", "true",
         "--dataset_name", "tester/shapes", "--output_dir", str(tmp_path / "out"), "--do_train", "--do_eval",
         "--remove_unused_columns", "false", "--max_steps", "150", "--per_device_train_batch_size", "4",
         "--learning_rate", "2e-3", "--lr_scheduler_type", "polynomial", "--use_cpu", "--report_to", "none",
         "--logging_steps", "25", "--seed", "0"],
        cwd=tmp_path, timeout=800, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )  # fmt: skip

    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "out"))
    assert before.keys() == after.keys()
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    # Of an untrained model it is below 0.3: one class, at best the background, is right somewhere.
    assert results["eval_mean_iou"] > 0.5, results
    assert min(results[f"eval_iou_{label}"] for label in labels.values()) > 0.2, results
