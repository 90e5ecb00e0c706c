"""Models on a DINOv3 ViT, with checkpoints in the form that transformers writes."""

import re

import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel, EomtDinov3Config

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
    "num_register_tokens": 4,
    "initializer_range": 0.15,
}
HEAD = {"num_blocks": 2, "num_upscale_blocks": 1, "image_size": 64}
BACKBONES = {
    "registers": {},
    "no_registers": {"num_register_tokens": 0},
    "gated": {"use_gated_mlp": True, "hidden_act": "silu"},
    "biases": {"key_bias": True, "query_bias": False, "mlp_bias": False, "proj_bias": False, "value_bias": False},
    "frequencies": {"rope_theta": 17.0, "layer_norm_eps": 1e-3, "layerscale_value": 0.1},
}


@pytest.fixture(params=BACKBONES, ids=str)
def backbone(request, tmp_path):
    torch.manual_seed(6)
    model = DINOv3ViTModel(DINOv3ViTConfig(**{**SIZES, **BACKBONES[request.param]})).eval()
    torch.nn.init.normal_(model.embeddings.register_tokens)  # zeros would not tell whether they arrived
    model.save_pretrained(tmp_path)
    return model


@torch.no_grad()
def test_weights_and_hidden_states_are_those_of_the_backbone(backbone, pixel_values, tmp_path):
    model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), **HEAD).eval()
    for name in ("layer_norm_eps", "num_register_tokens", "use_gated_mlp", "layerscale_value"):
        assert getattr(model.config, name) == getattr(backbone.config, name)
    assert model.config.rope_parameters["rope_theta"] == backbone.config.rope_theta
    assert model.layernorm.eps == model.layers[0].norm1.eps == backbone.config.layer_norm_eps
    wanted = backbone.state_dict()
    del wanted["embeddings.mask_token"]
    names = {
        name: name.replace("model.layer.", "layers.").replace("norm.", "layernorm.", int(name.startswith("norm.")))
        for name in wanted
    }
    state = model.state_dict()
    assert all(torch.equal(state[names[name]], weight) for name, weight in wanted.items())
    assert {name for name in state if name.startswith(("embeddings.", "layers.", "layernorm."))} == set(names.values())

    pixel_values = pixel_values[..., :40]
    theirs = backbone(pixel_values, output_hidden_states=True).hidden_states
    ours = model(pixel_values, keep_rates=1.0, output_hidden_states=True).hidden_states
    for index in range(model.config.first_query_layer + 1):  # embeddings, and the layers before the queries enter
        torch.testing.assert_close(ours[index], theirs[index], atol=1e-5, rtol=1e-4)
    assert (ours[4] - ours[0]).abs().max() > 0.1


def test_the_rest_of_the_model_is_new_and_trains(backbone, pixel_values, labels, tmp_path):
    model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), **HEAD, keep_rates=0.5).train()
    assert model.config.keep_rates == 0.5
    model(pixel_values, labels).loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    model.save_pretrained(tmp_path / "model")
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "model")
    model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)


@pytest.fixture
def plain_backbone(tmp_path):
    DINOv3ViTModel(DINOv3ViTConfig(**SIZES)).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_given_configuration(plain_backbone, tiny_config):
    config = tiny_config(layer_norm_eps=1e-5, keep_rates=0.3)
    model = Reg4PruForSemanticSegmentation.from_backbone(plain_backbone, config)
    assert model.config is config
    with pytest.raises(ValueError, match=r"not both: got `config` and \['keep_rates'\]"):
        Reg4PruForSemanticSegmentation.from_backbone(plain_backbone, config, keep_rates=0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "`layer_norm_eps` is 1e-06, the checkpoint has 1e-05"),
        ({"hidden_size": 64}, "`hidden_size` is 64, the checkpoint has 32"),
        ({"num_hidden_layers": 7}, "`num_hidden_layers` is 7, the checkpoint has 6"),
        ({"num_register_tokens": 0}, "`num_register_tokens` is 0, the checkpoint has 4"),
        ({"use_gated_mlp": True}, "`use_gated_mlp` is True, the checkpoint has False"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            "`rope_theta` is 5.0, the checkpoint has 100",
        ),
    ],
    ids=str,
)
def test_a_mismatch_names_the_field(plain_backbone, tiny_config, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Reg4PruForSemanticSegmentation.from_backbone(plain_backbone, tiny_config(**fields))


@pytest.mark.parametrize("kind", [EomtDinov3Config, Reg4PruConfig])
def test_other_models_are_refused_by_name(kind, tmp_path):
    kind().save_pretrained(tmp_path)
    known = "dinov2, dinov2_with_registers, dinov3_vit, vit, vit_mae; EoMT and Reg4Pru models are loaded by"
    with pytest.raises(ValueError, match=rf"is a '{kind.model_type}': plain vision transformers are known as {known}"):
        Reg4PruForSemanticSegmentation.from_backbone(tmp_path)
    with pytest.raises(OSError, match=r"There is no checkpoint at .*nowhere"):
        Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path / "nowhere"))


def test_fields_can_be_given_with_the_backbone(plain_backbone):
    model = Reg4PruForSemanticSegmentation.from_backbone(plain_backbone, **HEAD, pos_embed_rescale=2.0)
    assert model.config.pos_embed_rescale == 2.0
    with pytest.raises(ValueError, match="`hidden_size` is 64, the checkpoint has 32"):
        Reg4PruForSemanticSegmentation.from_backbone(plain_backbone, **HEAD, hidden_size=64)


@torch.no_grad()
def test_the_first_layers_of_a_deeper_backbone(plain_backbone, pixel_values):
    whole = Reg4PruForSemanticSegmentation.from_backbone(plain_backbone, **HEAD).eval()
    short = Reg4PruForSemanticSegmentation.from_backbone(plain_backbone, **HEAD, num_hidden_layers=4).eval()
    assert len(short.layers) == 4
    states = [model(pixel_values, keep_rates=1.0, output_hidden_states=True).hidden_states for model in (whole, short)]
    for index in range(short.config.first_query_layer + 1):
        torch.testing.assert_close(states[1][index], states[0][index])


def test_a_backbone_checkpoint_is_refused_by_from_pretrained(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    DINOv3ViTModel(DINOv3ViTConfig(**sizes, patch_size=8, image_size=64)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks .* weights of the model.*loaded by `from_backbone`"):
        Reg4PruForSemanticSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize("wanted", [torch.bfloat16, "bfloat16"], ids=str)
def test_torch_dtype_is_dtype(tmp_path, wanted):
    DINOv3ViTModel(DINOv3ViTConfig(**SIZES)).save_pretrained(tmp_path / "backbone")
    model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path / "backbone"), **HEAD, torch_dtype=wanted)
    assert model.dtype == torch.bfloat16
    model.float().save_pretrained(tmp_path / "model")
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "model", torch_dtype=wanted)
    assert loaded.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"`dtype` is torch\.float16 and `torch_dtype`"):
        Reg4PruForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.float16, torch_dtype=wanted)
