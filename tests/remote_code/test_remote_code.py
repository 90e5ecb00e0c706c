"""What breaks code on the Hub, one test a trap; the Hub itself is in tests/hub."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import modeling_reg4pru
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor, predict_image

from ..modeling_reg4pru.test_backbone_families import FAMILIES, HEAD
from ..modeling_reg4pru.test_backbone_families import build as build_backbone

PACKAGE = Path(modeling_reg4pru.__file__).parent
FILES = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
# What is for those only who train or prune, which takes the package.
INSTALLED = {"divergence.py", "pruning_adapter.py"}
# What someone has who can load a model at all.
ALLOWED = {"torch", "transformers", "numpy", "huggingface_hub", "PIL", "safetensors"}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture
def saved(tiny_model, tmp_path) -> Path:
    """A checkpoint as it goes to the Hub."""
    tiny_model().save_pretrained(tmp_path / "saved")
    Reg4PruImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_files_are_in_one_folder():
    assert [path.name for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE] == []


@every_file
def test_imports_of_our_own_are_relative_and_name_a_file(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "modeling_reg4pru" for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "modeling_reg4pru" or node.level
            if node.level:
                assert node.level == 1
                assert node.module, "`from . import x`: the file x is not copied to the Hub"
                assert "." not in node.module, "files on the Hub lie flat"
                assert (PACKAGE / f"{node.module}.py").is_file()


@every_file
def test_no_line_of_text_looks_like_an_import(path):
    """The files to copy are found by a regular expression, which also reads docstrings."""
    meant = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    assert set(get_relative_imports(path)) <= meant
    assert not re.findall(r"^\s*import\s+\.", path.read_text(), re.MULTILINE)


@every_file
def test_only_declared_dependencies_are_imported(path):
    needed = {name for name in get_imports(path) if name not in sys.stdlib_module_names}
    assert needed <= ALLOWED


def test_everything_that_is_imported_is_saved(saved):
    copied = {path.name for path in saved.glob("*.py")}
    assert copied == {path.name for path in FILES} - INSTALLED
    for path in saved.glob("*.py"):
        assert path.read_bytes() == (PACKAGE / path.name).read_bytes()


def test_auto_map_names_a_file_and_a_class(saved):
    auto_map = json.loads((saved / "config.json").read_text())["auto_map"]
    auto_map |= json.loads((saved / "preprocessor_config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation", "AutoImageProcessor"}
    for reference in auto_map.values():
        module, name = reference.split(".")
        tree = ast.parse((saved / f"{module}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_constructor_ends_in_post_init(tiny_model):
    """Without it loading fails with "no attribute all_tied_weights_keys"."""
    assert tiny_model().all_tied_weights_keys == {}
    source = ast.parse((PACKAGE / "modeling_reg4pru.py").read_text())
    (model,) = (n for n in source.body if isinstance(n, ast.ClassDef) and n.name == "Reg4PruForSemanticSegmentation")
    (init,) = (n for n in model.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    assert ast.unparse(init.body[-1]) == "self.post_init()"


def test_buffers_are_rebuilt_after_loading(tiny_model, saved):
    """Buffers that are not in the checkpoint come from meta tensors: garbage, unless `_init_weights` makes them."""
    model, loaded = tiny_model(), Reg4PruForSemanticSegmentation.from_pretrained(saved)
    expected, found = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert {"rope_embeddings.inv_freq", "attn_mask_probs"} <= expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def test_what_a_checkpoint_lacks_is_initialised(tiny_model, saved, tmp_path):
    """An EoMT-DINOv3 checkpoint has neither selectors nor our buffer: they must not stay uninitialised memory."""
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(("selectors.", "attn_mask_probs"))}
    save_file(kept, saved / "model.safetensors", metadata={"format": "pt"})
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(saved)
    assert torch.equal(loaded.attn_mask_probs, torch.ones(2))
    for name, parameter in loaded.selectors.named_parameters():
        assert parameter.isfinite().all(), name
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name))), name
        elif parameter.ndim > 1:
            assert 0 < parameter.std() < 1, name


def test_no_plain_tensor_is_made_in_the_constructor(tiny_model):
    """A tensor that is neither parameter nor buffer stays on the meta device after `from_pretrained`."""
    for name, module in tiny_model().named_modules():
        plain = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert plain == [], name


def test_a_second_save_after_loading_by_auto_model_is_the_same(saved, tmp_path):
    """A fine-tuned model carries its code on; nothing points back to where it came from."""
    AutoModel.from_pretrained(saved).save_pretrained(tmp_path / "again")
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (saved, tmp_path / "again"))
    assert first == second


HIDE_THE_PACKAGE = """
import sys

class Hidden:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("modeling_reg4pru", "datasets_fives"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden)
import torch
torch.set_num_threads(1)
"""


def run_without_the_package(code: str, *arguments: Path, folder: Path) -> subprocess.CompletedProcess:
    environment = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-c", HIDE_THE_PACKAGE + code, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_saved_folder_needs_no_package(saved, tmp_path):
    """In a process without the package; the outputs are the same, bit for bit, for every Auto class."""
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = Reg4PruForSemanticSegmentation.from_pretrained(saved)(pixels).logits
    torch.save((pixels, expected), tmp_path / "expected.pt")
    code = """
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import AutoImageProcessor
folder, kwargs = sys.argv[1], {"trust_remote_code": True}
pixels, expected = torch.load(sys.argv[2])
for auto in (AutoModel, AutoModelForSemanticSegmentation):
    with torch.no_grad():
        assert torch.equal(auto.from_pretrained(folder, **kwargs).eval()(pixels).logits, expected)
assert AutoConfig.from_pretrained(folder, **kwargs).keep_rates == 0.7
assert AutoImageProcessor.from_pretrained(folder, **kwargs).size == {"height": 64, "width": 64}
"""
    run_without_the_package(code, saved, tmp_path / "expected.pt", folder=tmp_path)


def test_every_family_of_backbones_needs_no_package(tmp_path):
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(5))
    expected = {}
    for family in FAMILIES:
        build_backbone(family).save_pretrained(tmp_path / "backbone" / family)
        model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path / "backbone" / family), **HEAD).eval()
        model.save_pretrained(tmp_path / "models" / family)
        with torch.no_grad():
            expected[family] = model(pixels, keep_rates=1.0).logits
    torch.save((pixels, expected), tmp_path / "expected.pt")
    code = """
from transformers import AutoModelForSemanticSegmentation
pixels, expected = torch.load(sys.argv[2])
for family, logits in expected.items():
    model = AutoModelForSemanticSegmentation.from_pretrained(f"{sys.argv[1]}/{family}", trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(pixels, keep_rates=1.0).logits, logits, atol=1e-4, rtol=1e-4, msg=family)
        model(pixels)
"""
    run_without_the_package(code, tmp_path / "models", tmp_path / "expected.pt", folder=tmp_path)


def test_the_pipeline_needs_no_package(saved, tmp_path):
    """It is that of the checkpoint, asks nothing, reports nothing, and segments tiles as the package does."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    model = Reg4PruForSemanticSegmentation.from_pretrained(saved)
    prediction = predict_image(model, Reg4PruImageProcessor.from_pretrained(saved), pixels)
    assert prediction.num_tiles > 1
    torch.save(prediction.segmentation, tmp_path / "expected.pt")
    code = """
import numpy as np
from transformers import pipeline
folder, image, expected = sys.argv[1:]
segmenter = pipeline("image-segmentation", model=folder, trust_remote_code=True, device="cpu")
assert type(segmenter).__module__.startswith("transformers_modules."), type(segmenter)
for results in segmenter([image] * 3, batch_size=2):
    masks = {result["label"]: np.asarray(result["mask"]) == 255 for result in results}
    assert np.array_equal(masks["LABEL_1"], torch.load(expected).numpy() == 1)
repr(segmenter.model.config)
segmenter.save_pretrained("again")
pipeline("image-segmentation", model="again", trust_remote_code=True, device="cpu")(image)
"""
    done = run_without_the_package(code, saved, tmp_path / "image.png", tmp_path / "expected.pt", folder=tmp_path)
    assert "not supported" not in done.stderr
    assert "[y/N]" not in done.stdout


def test_custom_pipelines_names_a_file_and_a_class(saved):
    """Where the package is installed its own pipeline is taken, so that nobody must trust the checkpoint's."""
    config = json.loads((saved / "config.json").read_text())
    module, name = config["custom_pipelines"]["image-segmentation"]["impl"].split(".")
    tree = ast.parse((saved / f"{module}.py").read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert "custom_pipelines" not in vars(Reg4PruForSemanticSegmentation.from_pretrained(saved).config)
