"""Label maps of five classes from a folder to the Hub and back, with their names, over HTTP."""

import pytest

from ..street_scenes import CLASSES, write_street

pytestmark = [pytest.mark.hub, pytest.mark.timeout(600)]

ROUND_TRIP = """
import json
import numpy as np, pytest
from huggingface_hub import HfApi
from datasets_fives import class_names, load_segmentation
from reg4pru import prepare

NAMES = {names!r}
local = load_segmentation("street", classes=NAMES, ignore_value=11)

def same(splits, kind):
    for split, rows in local.items():
        assert class_names(splits[split]) == NAMES, kind
        for one, other in zip(splits[split], rows, strict=True):
            assert np.array_equal(np.asarray(one["mask"]), np.asarray(other["mask"])), kind
            assert np.array_equal(np.asarray(one["image"]), np.asarray(other["image"])), kind
            assert (one["name"], one["classes"]) == (other["name"], other["classes"]), kind

prepare.main(["--dataset", "street", "--classes", *NAMES, "--ignore_value", "11", "--push_to_hub",
              "--hub_dataset_id", "tester/street"])
same(load_segmentation("tester/street"), "prepared")
same(load_segmentation("tester/street", streaming=True), "prepared, as a stream")
local.push_to_hub("tester/pushed")
same(load_segmentation("tester/pushed"), "pushed by datasets")

# Label maps of others: columns and splits of other names, and a file of classes in a commit of its own.
plain = local.remove_columns(["classes", "condition"]).rename_columns({{"image": "pixel_values", "mask": "label"}})
plain["val"] = plain.pop("validation")
plain.push_to_hub("tester/plain")
HfApi().upload_file(path_or_fileobj=json.dumps(dict(enumerate(NAMES))).encode(), path_in_repo="id2label.json",
                    repo_id="tester/plain", repo_type="dataset", revision="main", create_pr=False)
same(load_segmentation("tester/plain"), "names in a file of the repository")
same(load_segmentation("tester/plain", streaming=True), "the same, as a stream")
before = HfApi().list_repo_commits("tester/plain", repo_type="dataset")[1].commit_id
with pytest.raises(ValueError, match="mask is not binary"):
    load_segmentation("tester/plain", revision=before)
same(load_segmentation("tester/plain", revision=before, classes=NAMES), "names by argument")
print("done")
"""


def test_label_maps_come_back_from_the_hub_as_they_were(hub, run_client, tmp_path):
    write_street(tmp_path / "work" / "street", "11")
    done = run_client(ROUND_TRIP.format(names=CLASSES), cwd=tmp_path / "work", block_modules=(), timeout=500)
    assert done.stdout.endswith("done\n")
    files = hub.repo("tester/street", "dataset").files()
    assert "images with label maps of 5 classes" in files["README.md"].decode()
    assert ".prepared.json" not in files
