"""What `reg4pru tune` measured travels with the weights, and is read by their remote code."""

import json

import pytest
import torch

from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.speed_budget import describe_machine, fingerprint_weights

pytestmark = pytest.mark.hub


@pytest.mark.slow
def test_a_model_from_the_hub_knows_its_speed(hub, run_client, tiny_model, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    tiny_model().save_pretrained(checkpoint)
    Reg4PruImageProcessor(size={"height": 64, "width": 64}).save_pretrained(checkpoint)
    speed = {
        "provenance": {"date": "2026-11-22T10:00:00+00:00"}, "settings": {"dataset": "user/fives"},
        "machine": describe_machine("cpu", torch.float32),
        "image_size": [64, 64], "frame_size": [128, 128], "batch_size": 1, "tiles_per_image": 9, "num_layers": 6,
        "data": {"images": {"validation": 3}}, "weights": fingerprint_weights(checkpoint),
        "candidates": [{
            "keep_rates": [1.0, 0.7, 0.5], "reactivation_layer": 4, "selection_pool": "active", "allocation": "tile",
            "milliseconds": 61.25, "ratio": 1.5, "average_precision": 0.875, "dice": 0.75, "cldice": 0.5,
            "on_front": True,
        }],
    }  # fmt: skip
    push = ["reg4pru", "push", "--model_name_or_path", checkpoint, "--hub_model_id", "tester/vessels"]
    run_client(push, block_modules=())
    (checkpoint / "speed.json").write_text(json.dumps(speed))
    run_client(push, block_modules=())

    asks = """
import sys
import pytest
from transformers import AutoModelForSemanticSegmentation

def load(**place):
    return AutoModelForSemanticSegmentation.from_pretrained("tester/vessels", trust_remote_code=True, **place)

model = load(cache_dir="elsewhere")
assert type(model).__module__.startswith("transformers_modules.")
assert model.keep_rates_for(milliseconds=70) == [1.0, 0.7, 0.5]
assert model.set_speed_budget(milliseconds=70)["average_precision"] == 0.875
with pytest.raises(ValueError, match="the fastest that was measured takes 61.2"):
    model.keep_rates_for(milliseconds=50)
if len(sys.argv) > 1:
    with pytest.raises(ValueError, match="tester/vessels has no speed.json"):
        load(revision=sys.argv[1]).keep_rates_for(milliseconds=70)
"""
    first = hub.repo("tester/vessels").history()[1]
    run_client(["python", "-c", asks, first.id])
    run_client(asks, env={"HF_HUB_OFFLINE": "1"})
