"""`examples/finetune_from_hub.py` as a user runs it, in a process that has none of our packages."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

pytestmark = [pytest.mark.hub, pytest.mark.timeout(600)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_from_hub.py"

PUSH = """
import sys
import numpy as np
from datasets import Dataset, Features, Image
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
Reg4PruForSemanticSegmentation.from_pretrained(sys.argv[1]).push_to_hub("tester/vessels")
Reg4PruImageProcessor.from_pretrained(sys.argv[1]).push_to_hub("tester/vessels")
rng = np.random.default_rng(0)
rows = [{"image": rng.integers(0, 255, (80, 100, 3), dtype=np.uint8),
         "mask": 255 * (rng.random((80, 100)) < 0.2).astype(np.uint8)} for _ in range(4)]
Dataset.from_list(rows, Features({"image": Image(), "mask": Image()})).push_to_hub("tester/images")
"""


def test_it_fine_tunes_with_the_libraries_of_its_header_only(hub, run_client, tiny_model, tmp_path):
    header = re.search(r"# /// script\n(.*?)# ///\n", EXAMPLE.read_text(), re.DOTALL)[1]
    needed = set(re.findall(r'"(\w+)>=', header)) | {"PIL", "numpy", "safetensors", "huggingface_hub", "dataclasses"}
    assert {"torch", "transformers", "datasets", "accelerate"} < needed
    imported = set(re.findall(r"^(?:from|import) (\w+)", EXAMPLE.read_text(), re.MULTILINE))
    assert imported <= needed
    tiny_model(masked_attention=False).save_pretrained(tmp_path / "start")
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=100, num_labels=2)
    processor.save_pretrained(tmp_path / "start")
    run_client(["python", "-c", PUSH, str(tmp_path / "start")], home=tmp_path / "owner", block_modules=())

    run_client(
        ["python", str(EXAMPLE), "--model_name_or_path", "tester/vessels", "--dataset_name", "tester/images",
         "--output_dir", str(tmp_path / "finetuned"), "--max_steps", "2", "--per_device_train_batch_size", "2",
         "--learning_rate", "1e-3", "--use_cpu", "--report_to", "none",
         "--push_to_hub", "--hub_model_id", "tester/finetuned"],
        home=tmp_path / "stranger", timeout=300,
    )  # fmt: skip

    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "finetuned"))
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "finetuned")
    pushed = hub.repo("tester/finetuned").files()
    assert {"model.safetensors", "preprocessor_config.json", "modeling_reg4pru.py", "token_bank.py"} <= pushed.keys()
