# /// script
# requires-python = ">=3.10"
# dependencies = ["accelerate>=1.13", "datasets>=5.0", "scipy>=1.13", "torch>=2.11", "transformers>=5.18,<6"]
# ///
"""
Fine-tune a Reg4Pru checkpoint from the Hub on a data set from the Hub; of this repository only this file is needed.

    uv run examples/finetune_from_hub.py --model_name_or_path user/reg4pru-vits16-fives --dataset_name user/images \
        --output_dir finetuned --max_steps 500 --per_device_train_batch_size 4 --learning_rate 1e-4

The data set has the columns `image` and `mask`, with the classes of the checkpoint. All other flags are those of
`transformers.TrainingArguments`: `--push_to_hub --hub_model_id user/name` publishes the result with its code.
`reg4pru finetune` does more: any data set, keep-rate schedules, evaluation of whole images, a model card.
"""

from dataclasses import dataclass, field

import torch
from datasets import load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


@dataclass
class ExampleArguments:
    model_name_or_path: str = field(metadata={"help": "Checkpoint on the Hub, or a folder."})
    dataset_name: str = field(metadata={"help": "Data set on the Hub with the columns `image` and `mask`."})
    model_revision: str = field(
        default="main", metadata={"help": "Commit of the checkpoint, whose code is run: pin it if it is not yours."}
    )


def main() -> None:
    arguments, training = HfArgumentParser((ExampleArguments, TrainingArguments)).parse_args_into_dataclasses()
    training.remove_unused_columns = False  # the tiles are made from the columns as they are read
    remote = {"revision": arguments.model_revision, "trust_remote_code": True}
    processor = AutoImageProcessor.from_pretrained(arguments.model_name_or_path, **remote)
    model = AutoModelForSemanticSegmentation.from_pretrained(arguments.model_name_or_path, **remote)

    def random_tiles(batch: dict) -> dict:
        """A random tile of each image, at the scale of the checkpoint."""
        samples = {"pixel_values": [], "labels": []}
        for image, mask in zip(batch["image"], batch["mask"], strict=True):
            tiles = processor(image, segmentation_maps=mask, return_tensors="pt")
            chosen = torch.randint(len(tiles["labels"]), ()).item()
            for name, values in samples.items():
                values.append(tiles[name][chosen])
        return samples

    images = load_dataset(arguments.dataset_name, split="train").with_transform(random_tiles)
    trainer = Trainer(model, training, train_dataset=images, processing_class=processor)
    trainer.train()
    trainer.save_model()  # weights, configuration, image processor and code
    if training.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
