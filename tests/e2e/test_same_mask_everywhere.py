"""The same image gives the same mask by predict, evaluate, pipeline, Trainer and remote code."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score
from transformers import TrainingArguments, pipeline

from datasets_fives import load_vessels
from datasets_fives.field_of_view import field_of_view
from datasets_fives.sources.synthetic import draw_image
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.image_tiles import resize_map
from reg4pru import evaluate, predict, train
from reg4pru.app.comparison import Comparer
from reg4pru.inference.loading import load_checkpoint
from reg4pru.training import validation
from reg4pru.training.trainer import Reg4PruTrainer

# What training saw: crops or tiles of images at 128 px, or whole images, at the model's 64 px. `budget`: the tiles of
# an image share a budget, and their scores are weighted.
SCALES = {
    "crops": ("--working_size", "128", "--random_crop", "true"),
    "budget": ("--working_size", "128", "--random_crop", "true"),
    "tiles": ("--working_size", "128", "--tile_size", "64"),
    "whole": ("--working_size", "64"),
}
NAMES = ("1_N", "2_D", "3_A", "4_G", "5_N")
REMOTE = """
import sys
class Hidden:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("modeling_reg4pru", "datasets_fives", "reg4pru"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden)
import numpy as np, torch
torch.set_num_threads(1)
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
folder, image, *masks = sys.argv[1:]
for mask in masks:
    scale, expected = mask.split("=")
    checkpoint = f"{folder}/{scale}/last"
    expected = np.asarray(Image.open(expected)) == 255
    processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint, trust_remote_code=True).eval()
    with torch.no_grad():
        outputs = model(**processor(Image.open(image), return_tensors="pt"))
    (found,) = processor.post_process_semantic_segmentation(outputs)
    assert np.array_equal(found.numpy() == 1, expected), f"{scale}: model and processor"
    segmenter = pipeline("image-segmentation", model=checkpoint, trust_remote_code=True, device="cpu")
    found = {result["label"]: result["mask"] for result in segmenter(image)}
    assert np.array_equal(np.asarray(found["vessel"]) == 255, expected), f"{scale}: pipeline"
"""


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of 160 x 200 pixels, and a checkpoint trained on them at each scale."""
    folder = tmp_path_factory.mktemp("one_path")
    for kind in ("images", "masks"):
        (folder / "data" / kind).mkdir(parents=True)
    for index, name in enumerate(NAMES):
        image, mask = draw_image(200, name[-1], np.random.SeedSequence(index))
        Image.fromarray(image[20:180]).save(folder / "data" / "images" / f"{name}.png")
        Image.fromarray(mask[20:180] * np.uint8(255)).save(folder / "data" / "masks" / f"{name}.png")
    (folder / "split.yaml").write_text("train: [1_N, 2_D]\nvalidation: [3_A, 4_G]\ntest: [5_N]\n")
    overrides = ["hidden_size=32", "num_hidden_layers=6", "num_attention_heads=2", "intermediate_size=64",
                 "image_size=64", "patch_size=8", "num_upscale_blocks=1", "num_blocks=2", "train_num_points=128",
                 "initializer_range=0.15", "pruning_layers=[0, 2, 3]"]  # fmt: skip
    for scale, flags in SCALES.items():
        budget = ["allocation=image", "blend_share_weight=2.0"] if scale == "budget" else []
        train.main(["--output_dir", str(folder / scale), "--config_overrides", *overrides, *budget, *data(folder),
                    *flags, "--max_train_steps", "2", "--learning_rate", "1e-9",
                    "--per_device_train_batch_size", "2"])  # fmt: skip
    return folder


def data(folder: Path) -> list[str]:
    return ["--dataset", str(folder / "data"), "--split", str(folder / "split.yaml")]


def mask_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) == 255


@pytest.fixture(scope="module")
def predicted(folder) -> dict[str, dict[str, np.ndarray]]:
    """The masks that `reg4pru predict` writes, by scale and image."""
    masks = {}
    for scale in SCALES:
        model, output = folder / scale / "last", folder / f"predicted_{scale}"
        images = str(folder / "data" / "images")
        assert not predict.main(["--model_name_or_path", str(model), "--images", images, "--output_dir", str(output)])
        masks[scale] = {name: mask_of(output / f"{name}_mask.png") for name in NAMES}
        for mask in masks[scale].values():
            assert mask.shape == (160, 200)
            assert 0.02 < mask.mean() < 0.98, "otherwise equal masks say nothing"
    return masks


@pytest.mark.parametrize("scale", SCALES)
def test_pipeline_and_evaluation_give_what_predict_gives(folder, predicted, scale):
    model = folder / scale / "last"
    segmenter = pipeline("image-segmentation", model=str(model), device="cpu")
    for name in NAMES:
        results = {entry["label"]: entry["mask"] for entry in segmenter(str(folder / "data/images" / f"{name}.png"))}
        assert np.array_equal(np.asarray(results["vessel"]) == 255, predicted[scale][name]), name

    output = folder / f"evaluated_{scale}"
    evaluate.main(["--model_name_or_path", str(model), "--keep_rates", "0.7", "--output_dir", str(output),
                   *data(folder)])  # fmt: skip
    (row,) = csv.DictReader((output / "per_image.csv").open())
    inside = field_of_view(np.asarray(Image.open(folder / "data/images/5_N.png")))
    truth = mask_of(folder / "data/masks/5_N.png")
    assert float(row["dice"]) == pytest.approx(f1_score(truth[inside], predicted[scale]["5_N"][inside]), abs=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_trainer_measures_what_predict_gives(folder, predicted, scale, monkeypatch, tmp_path):
    """Equal to the pixel at the working size; at the images' own, where predict enlarges, nearly."""
    seen = []
    update = validation.PixelMetrics.update

    def record(self, probability, labels):
        seen.append((probability, labels))
        update(self, probability, labels)

    monkeypatch.setattr(validation.PixelMetrics, "update", record)
    model = Reg4PruForSemanticSegmentation.from_pretrained(folder / scale / "last")
    processor = Reg4PruImageProcessor.from_pretrained(folder / scale / "last")
    split = str(folder / "split.yaml")
    sides = load_vessels(str(folder / "data"), split=split, working_size=processor.working_size)
    training = TrainingArguments(tmp_path, max_steps=1, per_device_eval_batch_size=3, use_cpu=True, report_to="none")
    measured = Reg4PruTrainer(model, training, processor, sides["train"], sides["validation"]).evaluate()
    assert len(seen) == 2
    for (probability, labels), row in zip(seen, sides["validation"], strict=True):
        assert max(probability.shape) == processor.working_size
        row["image"].save(tmp_path / "image.png")
        segmenter = pipeline("image-segmentation", model=str(folder / scale / "last"), device="cpu")
        results = {entry["label"]: entry["mask"] for entry in segmenter(str(tmp_path / "image.png"))}
        assert np.array_equal(np.asarray(results["vessel"]) == 255, probability.numpy() > 0.5)
        inside = field_of_view(np.asarray(row["image"]))
        assert np.array_equal(labels.numpy(), np.where(inside, row["mask"], 255))
        own_size = resize_map(probability[None], (160, 200))[0] > 0.5
        assert f1_score(predicted[scale][row["name"]].ravel(), own_size.ravel()) > 0.98
    scores, truth = (torch.cat([part[index].flatten() for part in seen]) for index in (0, 1))
    counts = truth != 255
    assert counts.any()
    assert measured["eval_dice"] == pytest.approx(f1_score(truth[counts], scores[counts] > 0.5), abs=1e-6)


@pytest.mark.parametrize("scale", ["crops", "budget"])
def test_app_shows_what_predict_gives(folder, predicted, scale):
    comparer = Comparer(*load_checkpoint(str(folder / scale / "last")))
    for name in NAMES:
        pixels = np.asarray(Image.open(folder / "data/images" / f"{name}.png"))
        assert np.array_equal(comparer.predict(pixels, 0.7).labels, predicted[scale][name]), name


def test_remote_code_gives_what_the_package_gives(folder, predicted, tmp_path):
    masks = [f"{scale}={folder / f'predicted_{scale}' / '5_N_mask.png'}" for scale in SCALES]
    image = folder / "data/images/5_N.png"
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(folder), str(image), *masks],
        env=environment, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
