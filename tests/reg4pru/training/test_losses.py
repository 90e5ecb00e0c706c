"""A loss that is not finite ends a training before anything is kept of it."""

import re

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from datasets_fives import transforms
from reg4pru.training.arguments import FinetuneArguments
from reg4pru.training.command_line import make_parser

from .processes import Runs

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def spoil_step_six() -> None:
    """Step 6 sees an image that a broken augmentation has made."""
    augment, seen = transforms.TrainTransform.__call__, []

    def spoil(self, batch):
        seen.append(batch)
        sample = augment(self, batch)
        if len(seen) == 11:  # the first of the two images of step 6
            print("spoiled", batch["name"][0], flush=True)
            sample["pixel_values"][0][0, 0, 0] = torch.nan
        return sample

    transforms.TrainTransform.__call__ = spoil


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_loss_that_is_not_finite_ends_the_run(runs, command):
    assert runs.complete(command, command, prepare=spoil_step_six) == 1
    said = runs.said(command)
    assert "Training has stopped. The loss of step 6 is nan. Its images were synthetic/" in said
    assert "Traceback" not in said
    folder = runs.folder / command
    state = folder / {"train": "checkpoints/step-00000004", "finetune": "checkpoint-4"}[command]
    assert f"The last full state is {state}: continue from it with --resume_from_checkpoint latest" in said
    assert not list(folder.rglob("*6/optimizer*"))
    # A run that goes on keeps its learning rate; what helps is named by flags that this command has.
    advice = said.split("continue from it with")[1].split("\n")[0]
    assert "start a new run in another --output_dir with a lower --learning_rate" in advice
    parser = make_parser() if command == "train" else HfArgumentParser((FinetuneArguments, TrainingArguments))
    assert set(re.findall(r"--\w+", advice)) <= set(parser._option_string_actions)

    named = said.split("Its images were ")[1].split(". Nothing")[0].split(", ")
    assert len(named) == 2
    assert said.split("spoiled ")[1].split()[0] in named
    # Without the broken transform the run goes on, and ends.
    assert runs.resume(command, command) == 0
