"""End to end: images to the Hub, a checkpoint trained and pushed, and a user who fine-tunes and pushes it again."""

import json

import pytest

pytestmark = [pytest.mark.hub, pytest.mark.timeout(1800)]

# 9 images of 64 pixels in the published layout; 1_A and 2_A are the same eye.
MAKE_IMAGES = """
import numpy as np
from pathlib import Path
from PIL import Image
rng = np.random.default_rng(0)
for split, names in {"train": ["1_A", "2_A", "3_D", "4_D", "5_G", "6_N", "7_N"], "test": ["1_A", "2_G"]}.items():
    for kind in ("Original", "Ground truth"):
        Path("fives", split, kind).mkdir(parents=True)
    for name in names:
        mask = np.zeros((64, 64), dtype=bool)
        for x in rng.integers(8, 56, 2):
            mask[:, x : x + 3] = True
        if name == "2_A":
            mask = twin
        twin = mask
        photo = np.clip(np.where(mask[..., None], (90, 30, 20), (170, 90, 50)) + rng.normal(0, 8, (64, 64, 3)), 0, 255)
        Image.fromarray(photo.astype(np.uint8)).save(Path("fives", split, "Original", f"{name}.png"))
        colours = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        Image.fromarray(colours).save(Path("fives", split, "Ground truth", f"{name}.png"))
"""

RECIPE = {
    "config_overrides": {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8,
        "image_size": 64, "num_upscale_blocks": 1, "num_blocks": 1, "train_num_points": 256, "masked_attention": False,
    },
    "dataset": "tester/fives", "streaming": True, "max_train_steps": 4, "per_device_train_batch_size": 2,
    "head_warmup_steps": 0, "backbone_warmup_steps": 1, "learning_rate": 1e-3, "ema_decay": 0.5,
}  # fmt: skip

OWNER = f"""
import json
import numpy as np, torch
from datasets_fives import load_fives
from datasets_fives.field_of_view import field_of_view
from datasets_fives.metrics.space import write_space
from huggingface_hub import HfApi
from reg4pru import evaluate, prepare, push, train
from reg4pru.inference.loading import load_checkpoint
from modeling_reg4pru.tiled_inference import predict_image
{MAKE_IMAGES}
prepare.main(["--fives_dir", "fives", "--output_dir", "prepared", "--push_to_hub", "--hub_dataset_id",
              "tester/fives", "--hub_private_repo", "--images_per_shard", "4"])
data_commit = HfApi().dataset_info("tester/fives").sha
json.dump({RECIPE!r}, open("recipe.yaml", "w"))
train.main(["recipe.yaml", "--dataset_revision", data_commit, "--output_dir", "run", "--push_to_hub",
            "--hub_model_id", "tester/vessels", "--hub_private_repo"])
evaluate.main(["--model_name_or_path", "tester/vessels", "--dataset", "tester/fives", "--dataset_revision",
               data_commit, "--output_dir", "measured", "--keep_rates", "1.0", "0.5"])
push.main(["--model_name_or_path", "run/best", "--metrics", "measured/metrics.json", "--hub_model_id",
           "tester/vessels", "--hub_dataset_id", "tester/fives"])
space = write_space("space", "tester/vessel_metrics")
HfApi().create_repo("tester/vessel_metrics", repo_type="space", space_sdk="static", private=True)
HfApi().upload_folder(repo_id="tester/vessel_metrics", repo_type="space", folder_path=space)

# What a stranger must find again.
model, processor = load_checkpoint("run/best")
rows = load_fives("tester/fives", revision=data_commit)["test"]
rows[0]["image"].save("image.png")
pixels = processor(rows[0]["image"], return_tensors="pt").pixel_values
with torch.no_grad():
    logits = {{rate: model(pixels, keep_rates=rate).logits for rate in (0.7, 0.5, 1.0)}}
columns = dict(
    names=[row["name"] for row in rows],
    conditions=[rows.features["condition"].int2str(row["condition"]) for row in rows],
    predictions=[predict_image(model, processor, row["image"], 0.5).probabilities[1].numpy() for row in rows],
    references=[np.asarray(row["mask"]) for row in rows],
    fields_of_view=[field_of_view(np.asarray(row["image"])) for row in rows],
)
torch.save({{"logits": logits, "columns": columns}}, "expected.pt")
"""

STRANGER = """
import json, re, sys
import evaluate, numpy as np, torch, transformers
from huggingface_hub import HfApi, hf_hub_download
from transformers.models.auto import image_processing_auto
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, pipeline
expected = torch.load("expected.pt", weights_only=False)
logits, columns = expected["logits"], expected["columns"]
metric = evaluate.load("tester/vessel_metrics")
for start in (0, 1):
    metric.add_batch(**{name: column[start : start + 1] for name, column in columns.items()})
measured = json.load(open("measured/metrics.json"))["results"]["0.5"]
assert json.loads(json.dumps(metric.compute()), parse_constant=lambda _: None) == measured

api, remote = HfApi(), {"trust_remote_code": True}
first = api.model_info("tester/vessels").sha
card = open(hf_hub_download("tester/vessels", "README.md")).read()
use, finetune = re.findall(r"```python\\n(.*?)```", card, re.DOTALL)
if getattr(transformers.AutoImageProcessor, "is_dummy", False):  # 5.17 withholds it without torchvision
    transformers.AutoImageProcessor = image_processing_auto.AutoImageProcessor
scope = {}
exec(use, scope)  # the card's own example
assert torch.equal(scope["outputs"].logits, logits[0.5])
with torch.no_grad():
    outputs = {rate: scope["model"](**scope["inputs"], keep_rates=rate) for rate in logits}
assert all(torch.equal(outputs[rate].logits, logits[rate]) for rate in logits)
faster, slower, dense = (outputs[rate].token_counts for rate in (0.5, 0.7, 1.0))
assert torch.equal(scope["outputs"].token_counts, faster)
assert faster.max() == dense.max()
assert faster.sum() < slower.sum() < dense.sum()

masks = pipeline("image-segmentation", model="tester/vessels", trust_remote_code=True)("image.png")
found = {entry["label"]: np.asarray(entry["mask"]) > 0 for entry in masks}
(mask,) = scope["processor"].post_process_semantic_segmentation(outputs[0.7])  # at the rate of the checkpoint
for label, name in enumerate(("background", "vessel")):
    assert np.array_equal(found.get(name, np.zeros((64, 64), bool)), mask.numpy() == label)
assert AutoConfig.from_pretrained("tester/vessels", **remote).keep_rates == 0.7
assert type(AutoModel.from_pretrained("tester/vessels", **remote)).__name__ == "Reg4PruForSemanticSegmentation"

finetune = finetune.replace('finetuned", remove', 'finetuned", use_cpu=True, remove')
finetune = finetune.replace("max_steps=100", "max_steps=2")
scope = {}
exec(finetune, scope)
scope["trainer"].model.eval().push_to_hub("tester/vessels", commit_message="fine-tuned by a stranger")
pixels = scope["processor"](__import__("PIL.Image").Image.open("image.png"), return_tensors="pt").pixel_values
def predict(name, **kwargs):
    with torch.no_grad():
        return AutoModelForSemanticSegmentation.from_pretrained(name, **remote, **kwargs).eval()(pixels).logits
new = predict("tester/vessels")
assert not torch.equal(new, logits[0.7])
assert torch.equal(new, predict("finetuned")), "what Trainer saved, with its code, is what was pushed"
assert torch.equal(predict("tester/vessels", revision=first), logits[0.7]), "the older revision is what it was"
print(first)
"""

OFFLINE = """
import sys, torch
from transformers import AutoModelForSemanticSegmentation, pipeline
expected = torch.load("expected.pt", weights_only=False)["logits"]
kwargs = dict(trust_remote_code=True, revision=sys.argv[1])
model = AutoModelForSemanticSegmentation.from_pretrained("tester/vessels", **kwargs)
assert "transformers_modules" in type(model).__module__
pipe = pipeline("image-segmentation", model="tester/vessels", **kwargs)
from PIL import Image
pixels = pipe.image_processor(Image.open("image.png"), return_tensors="pt").pixel_values
with torch.no_grad():
    assert torch.equal(model.eval()(pixels).logits, expected[0.7])
    assert torch.equal(pipe.model(pixels).logits, expected[0.7])
"""

INSTALLED = """
import sys, torch
import modeling_reg4pru
from transformers import AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from PIL import Image
model = AutoModelForSemanticSegmentation.from_pretrained("tester/vessels", revision=sys.argv[1]).eval()
assert type(model) is modeling_reg4pru.Reg4PruForSemanticSegmentation, "no remote code"
processor = AutoImageProcessor.from_pretrained("tester/vessels", revision=sys.argv[1])
with torch.no_grad():
    logits = model(**processor(Image.open("image.png"), return_tensors="pt")).logits
assert torch.equal(logits, torch.load("expected.pt", weights_only=False)["logits"][0.7])

from reg4pru import finetune
finetune.main(["--model_name_or_path", "tester/vessels", "--model_revision", sys.argv[1], "--dataset",
    "tester/fives", "--output_dir", "trained", "--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu",
    "--push_to_hub", "--hub_model_id", "tester/finetuned", "--hub_private_repo", "True"])
"""


def test_from_images_to_a_strangers_fine_tuned_model(hub, run_client, tmp_path):
    work = tmp_path / "work"
    run_client(OWNER, home=tmp_path / "owner", cwd=work, block_modules=(), timeout=900)

    data, model = hub.repo("tester/fives", "dataset"), hub.repo("tester/vessels")
    assert data.private
    assert model.private
    assert [commit.title for commit in data.history()] == ["Upload FIVES", "initial commit"]
    assert [commit.title for commit in model.history()] == ["Upload checkpoint"] * 2 + ["initial commit"]
    shards = {path for path in data.files() if path.endswith(".parquet")}
    assert shards == {f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)} | {"data/test-00000-of-00001.parquet"}
    assert "train/1_A, train/2_A" in data.files()["README.md"].decode()
    files = model.files()
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "train_results.json", "README.md",
            "results/metrics.json", "results/per_image.csv", "results/figure.png", "modeling_reg4pru.py",
            ".eval_results/fives.yaml"} < files.keys()  # fmt: skip
    assert "datasets:\n- tester/fives" in files["README.md"].decode()
    assert "FIVES (Jin et al." in files["README.md"].decode(), "what `reg4pru prepare` made is known, streamed or not"
    # The evaluation streamed nothing: streaming was the training's, whose requests ask for parts of files.
    assert any(entry.status == 206 for entry in hub.requests("GET", "/resolve/.*train-.*parquet"))

    first = run_client(STRANGER, home=tmp_path / "stranger", cwd=work, timeout=900).stdout.split()[-1]
    assert model.history()[0].title == "fine-tuned by a stranger"
    offline = {"HF_HUB_OFFLINE": "1"}
    sent = len(hub.log)
    run_client(["python", "-c", OFFLINE, first], home=tmp_path / "stranger", cwd=work, env=offline, timeout=900)
    assert len(hub.log) == sent, "offline is offline"

    command = ["python", "-c", INSTALLED, first]
    run_client(command, home=tmp_path / "colleague", cwd=work, block_modules=(), timeout=900)
    pushed = hub.repo("tester/finetuned").files()
    assert hub.repo("tester/finetuned").private
    assert json.loads(pushed["config.json"])["keep_rates"] == [0.7, 0.7]
    assert "2 steps from [`tester/vessels`]" in pushed["README.md"].decode()
    assert "training_args.bin" not in pushed

    token = hub.token.encode()
    for repo in (data, model, hub.repo("tester/finetuned")):
        assert not any(token in stored.data for commit in repo.history() for stored in commit.files.values())
    assert not [path for path in work.rglob("*") if path.is_file() and token in path.read_bytes()]
