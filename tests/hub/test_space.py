"""The Space of a checkpoint: a folder that runs by itself, pushed beside the checkpoint."""

import subprocess
import sys

import pytest
import yaml

from reg4pru.hub.space import write_space

pytestmark = pytest.mark.hub


@pytest.fixture(autouse=True)
def _gradio():
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'reg4pru[app]'")


def test_the_folder_runs_by_itself(tmp_path):
    folder = tmp_path / "space"
    write_space(folder, "tester/vessels")
    header = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert (header["sdk"], header["app_file"], header["models"]) == ("gradio", "app.py", ["tester/vessels"])
    assert header["sdk_version"].startswith("6.")
    needed = (folder / "requirements.txt").read_text()
    assert "torch" in needed
    assert "gradio[mcp]" in needed
    assert "pytest" not in needed
    assert (folder / "reg4pru" / "app" / "style.css").is_file()
    code = (
        "import sys; sys.path.insert(0, '.'); import reg4pru.app.__main__ as app, modeling_reg4pru as model; "
        "print(app.__file__, model.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.count(str(folder)) == 2
    with pytest.raises(ValueError, match="not empty"):
        write_space(folder, "tester/vessels")


def test_it_is_pushed_beside_the_checkpoint_and_again(hub, run_client):
    done = run_client(
        """
import torch
from huggingface_hub import HfApi
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from reg4pru import push
Reg4PruForSemanticSegmentation(Reg4PruConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
    intermediate_size=64, image_size=64, patch_size=8, num_upscale_blocks=1, num_blocks=1)
    ).save_pretrained("checkpoint")
Reg4PruImageProcessor(size={"height": 64, "width": 64}).save_pretrained("checkpoint")
for _ in range(2):
    push.main(["--model_name_or_path", "checkpoint", "--hub_model_id", "tester/vessels", "--space", "tester/app"])
files = HfApi().list_repo_files("tester/app", repo_type="space")
package = {"reg4pru/app/page.py", "datasets_fives/metrics/accumulator.py"}
assert {"README.md", "app.py", "requirements.txt"} | package <= set(files)
HfApi().create_repo("tester/other", repo_type="space", space_sdk="gradio")
HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="mine.py", repo_id="tester/other", repo_type="space")
try:
    push.main(["--model_name_or_path", "checkpoint", "--hub_model_id", "tester/new", "--space", "tester/other"])
except SystemExit as stopped:
    assert stopped.code == 2
assert not HfApi().repo_exists("tester/new"), "refused before anything was sent"
print("all good")
""",
        block_modules=(),
    )
    assert "all good" in done.stdout
    assert "contains something else: files of another app" in done.stderr
