"""datasets, evaluate and transformers against the test Hub."""

import pytest

pytestmark = pytest.mark.hub


def test_datasets_push_load_and_stream(hub, run_client, tmp_path):
    run_client(
        """
import datasets, numpy as np
from PIL import Image
from datasets import Dataset, DatasetDict, Features, Value
features = Features({"image": datasets.Image(), "mask": datasets.Image(mode="L"), "name": Value("string")})
def rows(count, seed):
    rng = np.random.default_rng(seed)
    for i in range(count):
        photo = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        mask = Image.fromarray((np.arange(64).reshape(8, 8) % 2).astype(np.uint8))
        yield {"image": photo, "mask": mask, "name": f"{i}"}
def build(seed):
    make = lambda n: Dataset.from_list(list(rows(n, seed)), features=features)
    return DatasetDict(train=make(3), test=make(2))
build(0).push_to_hub("tester/eyes", private=True)
build(1).push_to_hub("tester/eyes", private=True, commit_message="new images")
"""
    )
    repo = hub.repo("tester/eyes", "dataset")
    assert repo.private
    assert {path for path in repo.files() if path.endswith(".parquet")} == {
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
    }
    older = next(commit.id for commit in repo.history()[1:] if any("parquet" in path for path in commit.files))
    load = f"""
import numpy as np
from datasets import load_dataset
rows = load_dataset("tester/eyes", split="test")
old = load_dataset("tester/eyes", split="test", revision={older!r})
stream = list(load_dataset("tester/eyes", split="test", streaming=True))
assert len(rows) == len(stream) == 2 and rows[1]["name"] == stream[1]["name"] == "1"
for i in range(2):
    assert np.array_equal(rows[i]["image"], stream[i]["image"])
    assert not np.array_equal(rows[i]["image"], old[i]["image"])
    assert set(np.unique(rows[i]["mask"])) == {{0, 1}} and rows[i]["mask"].mode == "L"
"""
    run_client(load, home=tmp_path / "reader")
    assert any(entry.status == 206 for entry in hub.requests("GET", "/resolve/.*parquet")), "streaming asks for ranges"
    outsider = run_client(load, home=tmp_path / "outsider", token=hub.add_user("guest"), check=False)
    assert outsider.returncode != 0
    assert "DatasetNotFoundError" in outsider.stderr


def test_load_dataset_falls_back_to_an_older_copy_without_an_error(hub, run_client):
    push = "from datasets import Dataset; Dataset.from_dict({'a': [%d]}).push_to_hub('tester/numbers')"
    load = "from datasets import load_dataset; print(load_dataset('tester/numbers', split='train')['a'][0])"
    run_client(push % 1)
    assert run_client(load).stdout == "1\n"
    run_client(push % 2)
    hub.fail(path_pattern="datasets/tester/numbers", status=404, times=1000)
    stale = run_client(load)
    # This is why every test client needs a home of its own and evaluation a pinned revision.
    assert stale.stdout == "1\n"
    assert "Using the latest cached version" in stale.stderr


METRIC = """
import datasets
import evaluate


class Wrong(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="counts", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"wrong": sum(p != r for p, r in zip(predictions, references))}
"""


def test_evaluate_loads_a_metric_from_a_space(hub, run_client, tmp_path):
    upload = f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("tester/wrong", repo_type="space", space_sdk="gradio")
args = dict(repo_id="tester/wrong", repo_type="space", path_in_repo="wrong.py")
first = api.upload_file(path_or_fileobj={METRIC.encode()!r}, **args)
api.upload_file(path_or_fileobj={METRIC.replace('"wrong": sum', '"wrong": -sum').encode()!r}, **args)
print(first.oid)
"""
    revision = run_client(upload).stdout.strip()
    run_client(
        f"""
import evaluate
for revision, expected in ((None, -2), ({revision!r}, 2)):
    metric = evaluate.load("tester/wrong", revision=revision)
    metric.add_batch(predictions=[0, 1, 1], references=[0, 0, 1])
    metric.add_batch(predictions=[1], references=[0])
    assert metric.compute() == {{"wrong": expected}}
""",
        home=tmp_path / "reader",
    )
    assert hub.repo("tester/wrong", "space").sdk == "gradio"


@pytest.mark.slow
def test_transformers_push_and_load(hub, run_client, tmp_path):
    push = """
import torch
from transformers import BertConfig, BertModel
def save(seed):
    torch.manual_seed(seed)
    model = BertModel(BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=16, max_position_embeddings=8)).eval()
    pushed = model.push_to_hub("tester/bert", private=True, max_shard_size="4KB", commit_message=f"seed {seed}")
    return model(torch.arange(6)[None]).last_hidden_state.sum().item(), pushed.oid
print(*save(0), *save(1))
"""
    first_sum, first_id, second_sum, second_id = run_client(push).stdout.split()
    weights = [path for path in hub.repo("tester/bert").files() if path.endswith(".safetensors")]
    assert len(weights) > 1, "max_shard_size splits the weights"
    assert {"config.json", "model.safetensors.index.json"} < hub.repo("tester/bert").files().keys()
    assert hub.repo("tester/bert").private

    load = """
import sys, torch
from transformers import AutoModel
for revision in sys.argv[1:]:
    model = AutoModel.from_pretrained("tester/bert", revision=revision).eval()
    print(model(torch.arange(6)[None]).last_hidden_state.sum().item())
"""
    script = tmp_path / "load.py"
    script.write_text(load)
    assert hub.repo("tester/bert").find_commit().id == second_id
    command = ["python", script, first_id, "main"]
    online = run_client(command, home=tmp_path / "reader")
    assert online.stdout.split() == [first_sum, second_sum]
    hub.fail(times=1000)
    offline = run_client(command, home=tmp_path / "reader", env={"HF_HUB_OFFLINE": "1"})
    assert offline.stdout == online.stdout
