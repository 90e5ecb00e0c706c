"""`reg4pru predict` from a data set on the Hub to another one, over HTTP."""

import pytest

pytestmark = [pytest.mark.hub, pytest.mark.timeout(600)]

PREDICT = """
import os
import numpy as np, pytest, torch
from datasets import Dataset, Features, Image, Value, load_dataset
from huggingface_hub import HfApi
from reg4pru import predict
from datasets_fives.sources.synthetic import draw_image
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

torch.manual_seed(0)
Reg4PruForSemanticSegmentation(Reg4PruConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
    intermediate_size=64, image_size=64, patch_size=8, num_upscale_blocks=1, num_blocks=1)).save_pretrained("model")
Reg4PruImageProcessor(size={"height": 64, "width": 64}).save_pretrained("model")
images = [draw_image(64 + 16 * index, "N", np.random.SeedSequence(index))[0] for index in range(3)]
rows = [{"image": pixels, "name": f"ward/{index}"} for index, pixels in enumerate(images)]
Dataset.from_list(rows, features=Features({"image": Image(), "name": Value("string")})).push_to_hub(
    "tester/ward", split="test", private=True)

command = ["--model_name_or_path", "model", "--dataset", "tester/ward", "--output_dir", "out",
           "--push_to_hub", "--hub_dataset_id", "tester/ward_vessels", "--hub_private_repo"]
with pytest.raises(SystemExit, match="The upload to guest/ward_vessels failed"):
    predict.main([*command[:-2], "guest/ward_vessels"])
written = os.stat("out/ward_0_mask.png").st_mtime_ns
assert predict.main(command) == 0
assert os.stat("out/ward_0_mask.png").st_mtime_ns == written, "nothing is predicted twice"
found = load_dataset("tester/ward_vessels", split="train")
assert found["name"] == ["ward/0", "ward/1", "ward/2"]
for row, pixels in zip(found, images):
    mask = Image().decode_example({"path": f"out/{row['name'].replace('/', '_')}_mask.png", "bytes": None})
    assert np.array_equal(np.asarray(row["mask"]), np.asarray(mask))
    assert np.asarray(row["probability"]).shape == pixels.shape[:2]

def commits(name):
    return len(HfApi().list_repo_commits(name, repo_type="dataset"))
before = commits("tester/ward_vessels")
assert predict.main([*command, "--overwrite", "--keep_rates", "0.5"]) == 0  # its own predictions are replaced
assert commits("tester/ward_vessels") == before + 1
before = commits("tester/ward")
with pytest.raises(SystemExit):  # the images are not
    predict.main([*command, "--hub_dataset_id", "tester/ward"])
assert commits("tester/ward") == before
"""


def test_a_data_set_on_the_hub_is_source_and_sink(hub, run_client):
    hub.add_user("guest")
    done = run_client(PREDICT, block_modules=(), timeout=500)
    assert "a data set whose card has no tag 'reg4pru-predictions'" in done.stderr
    repo = hub.repo("tester/ward_vessels", "dataset")
    assert repo.private
    assert hub.token not in done.stdout + done.stderr
    files = repo.files()
    assert "data/train-00000-of-00001.parquet" in files
    assert "not a medical device" in files["README.md"].decode()
