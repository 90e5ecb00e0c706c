"""What the pages take for granted: images in folders, checkpoints of earlier commands, and repositories of the Hub."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from huggingface_hub import HfApi
from PIL import Image
from transformers import (
    Dinov2Config,
    Dinov2Model,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtImageProcessorPil,
)

from datasets_fives import SAMPLE_SPLIT
from datasets_fives.sources.synthetic import draw_image
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

CAMVID = 11
# What another page has made: page → place → where it was written.
GIVEN = {
    "README.md": {"outputs/quick": "outputs/quick"},
    "docs/hub.md": {
        "runs/vits16/best": "outputs/quick/run/last",
        "measured/metrics.json": "outputs/quick/evaluated/metrics.json",
    },
    "docs/inference.md": dict.fromkeys(
        ("outputs/tiny/last", "runs/sample/last", "runs/vits16/best"), "outputs/quick/run/last"
    ),
    "docs/method.md": {"outputs/tiny/last": "outputs/quick/run/last"},
    "docs/training_arguments.md": {"outputs/tiny/last": "outputs/quick/run/last"},
}
RECIPE = """
config_overrides: {hidden_size: 32, num_hidden_layers: 6, num_attention_heads: 2, intermediate_size: 64,
  image_size: 64, patch_size: 8, pruning_layers: [1, 2, 3]}
random_crop: true
"""


def hash_of(name: str) -> int:
    """A seed for what has a name."""
    return zlib.crc32(name.encode())


def draw_vessels(seed: int, size: int = 96) -> tuple[Image.Image, Image.Image]:
    """An image with a binary mask, {0, 255}."""
    pixels, mask = draw_image(size, "N", np.random.SeedSequence((99, seed)))
    return Image.fromarray(pixels), Image.fromarray(255 * mask)


def draw_scene(seed: int, classes: int) -> tuple[Image.Image, Image.Image]:
    """An image with a label map: every class, and in a corner the value after them, which is to be ignored."""
    draws = np.random.default_rng(seed)
    labels = np.kron(draws.permutation(np.arange(24) % classes).reshape(4, 6), np.ones((16, 16))).astype(np.uint8)
    pixels = (20 * labels[..., None] + draws.integers(0, 20, (*labels.shape, 3))).astype(np.uint8)
    labels[:4, :4] = 11
    return Image.fromarray(pixels), Image.fromarray(labels)


def write_pairs(images: Path, labels: Path, pairs: dict[str, tuple[Image.Image, Image.Image]]) -> None:
    for folder, side in ((images, 0), (labels, 1)):
        folder.mkdir(parents=True)
        for name, pair in pairs.items():
            pair[side].save(folder / f"{name}.png")


def add_inputs(page: str, base: Path) -> None:
    """The files that a page speaks of, in the current folder; `base` is where the commands before it were run."""
    vessels = {f"{number}": draw_vessels(number) for number in range(12)}
    write_pairs(Path("path/to/images/images"), Path("path/to/images/masks"), vessels)
    # Two tiles each for a model of 64 px: as many as `reg4pru prune` wants at least.
    scenes = {
        f"scene {number}": draw_scene(number, 3)
        for number in range(20 if "prune" in page or page == "README.md" else 2)
    }
    write_pairs(Path("images"), Path("labels of images"), scenes)
    Path("more").mkdir()
    for place in ("more/1.jpg", "image.jpg", "image.png"):
        vessels["0"][0].save(place)
    fives = Path("path/to/fives")
    names = {"test": [name.split("/")[1] for side in SAMPLE_SPLIT.values() for name in side], "train": ["1_N", "2_N"]}
    for split, named in names.items():
        pairs = {name: draw_vessels(hash_of(split + name)) for name in named}
        write_pairs(fives / split / "Original", fives / split / "Ground truth", pairs)
    for side, count in {"train": 3, "val": 1, "test": 1}.items():
        for root, classes in ((Path("path/to/camvid"), CAMVID), (Path("path/to/scenes"), 3)):
            scenes = {f"{side}{number}": draw_scene(hash_of(side) + number, classes) for number in range(count)}
            write_pairs(root / "images" / side, root / "labels" / side, scenes)
    Path("classes.txt").write_text("\n".join(f"class {number}" for number in range(CAMVID)), encoding="utf-8")
    Path("my_recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for place, made in GIVEN.get(page, {}).items():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).symlink_to(base / made)


def fill_hub(checkpoint: Path, scratch: Path) -> None:
    """Models and data sets that the pages name: `checkpoint`, and tiny models in place of those of others."""
    model = Reg4PruForSemanticSegmentation.from_pretrained(checkpoint)
    processor = Reg4PruImageProcessor.from_pretrained(checkpoint)
    for name in ("user/name", "user/reg4pru-dinov2-small-fives"):
        model.push_to_hub(name)
        processor.push_to_hub(name)
    features = Features({"image": ImageFeature(), "mask": ImageFeature(), "name": Value("string")})
    rows = [{"image": image, "mask": mask, "name": str(n)} for n in range(4) for image, mask in [draw_vessels(n)]]
    for split, chosen in {"train": rows[:2], "test": rows[2:]}.items():
        Dataset.from_list(chosen, features=features).push_to_hub("user/images", split=split)

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2}
    tokens = json.loads(Path("tokens.json").read_text(encoding="utf-8"))
    dinov2 = Dinov2Config(**sizes, num_hidden_layers=12, mlp_ratio=2, image_size=56, patch_size=14)
    Dinov2Model(dinov2).save_pretrained(scratch / "facebook/dinov2-small")
    eomt = EomtDinov3Config(
        **sizes, num_hidden_layers=6, intermediate_size=64, image_size=64, patch_size=8, num_labels=3, num_queries=5,
        num_upscale_blocks=1, num_blocks=2, num_register_tokens=0, initializer_range=0.15,
    )  # fmt: skip
    dense = EomtDinov3ForUniversalSegmentation(eomt)
    dense.attn_mask_probs.zero_()
    pruned_in_docs = scratch / "tue-mps/ade20k_semantic_eomt_large_512"
    dense.save_pretrained(pruned_in_docs)
    EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": None}).save_pretrained(pruned_in_docs)
    for owner, token in tokens.items():
        for folder in (scratch / owner).iterdir():
            api = HfApi(token=token)
            api.create_repo(f"{owner}/{folder.name}")
            api.upload_folder(repo_id=f"{owner}/{folder.name}", folder_path=folder)
