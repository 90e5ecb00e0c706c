"""Every family of plain vision transformers as backbone: hidden states of every layer, and all that follows."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from modeling_reg4pru.backbone_families import HEAD_DIM
from modeling_reg4pru.backbone_loading import LICENCES, resample_patch_kernel

SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 1, "image_size": 64, "patch_size": 8}
MLP = {"intermediate_size": 96}
HEAD = {"image_size": 48, "num_blocks": 1, "num_upscale_blocks": 1, "pruning_layers": [0, 1], "keep_rates": 0.5}


def build(name: str) -> torch.nn.Module:
    """A random backbone of a family, wide enough that a wrong weight shows."""
    torch.manual_seed(4)
    models = {
        "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, **MLP, num_register_tokens=2)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2)),
        "dinov2 giant": lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, use_swiglu_ffn=True)),
        "dinov2 registers": lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=3)
        ),
        "vit": lambda: ViTModel(ViTConfig(**SIZES, **MLP)),
        "vit without biases": lambda: ViTModel(ViTConfig(**SIZES, **MLP, qkv_bias=False)),
        "mae": lambda: ViTMAEModel(ViTMAEConfig(**SIZES, **MLP, mask_ratio=0.0)),
    }
    model = models[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


FAMILIES = ("dinov3", "dinov2", "dinov2 giant", "dinov2 registers", "vit", "vit without biases", "mae")


def states_of(model: torch.nn.Module, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states of embeddings and layers, of any family, with the patches in grid order."""
    extra = {}
    if isinstance(model, ViTMAEModel):
        count = (pixel_values.shape[-1] // 8) * (pixel_values.shape[-2] // 8)
        extra = {"noise": torch.arange(count).float().expand(len(pixel_values), -1), "interpolate_pos_encoding": True}
    if isinstance(model, ViTModel):
        extra = {"interpolate_pos_encoding": True}
    with torch.no_grad():
        return list(model(pixel_values, output_hidden_states=True, **extra).hidden_states)


def ours_of(model: Reg4PruForSemanticSegmentation, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Ours, unpruned, without the query tokens."""
    with torch.no_grad():
        states = model.eval()(pixel_values, keep_rates=1.0, output_hidden_states=True).hidden_states
    return list(states)[: model.config.first_query_layer + 1]


def assert_same_states(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for index, state in enumerate(ours):
        scale = theirs[index].abs().max().item()
        torch.testing.assert_close(state, theirs[index], atol=1e-5 * scale, rtol=1e-5, msg=f"layer {index}")


@pytest.mark.parametrize("size", [(64, 64), (48, 64)], ids=["trained size", "another size"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_transformers(family, size, tmp_path):
    backbone = build(family)
    backbone.save_pretrained(tmp_path)
    model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), **HEAD)
    pixel_values = torch.randn(2, 3, *size)
    assert_same_states(ours_of(model, pixel_values), states_of(backbone, pixel_values))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_prunes_saves_loads_and_exports(family, tmp_path):
    build(family).save_pretrained(tmp_path / "backbone")
    model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path / "backbone"), **HEAD).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pixel_values = torch.randn(2, 3, 48, 48)
    labels = (pixel_values[:, 0] > 0.5).long()
    losses = []
    for _ in range(10):
        losses.append(model(pixel_values, labels).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert min(losses[5:]) < losses[0]
    model.eval().save_pretrained(tmp_path / "model")
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        pruned = model(pixel_values)
        assert torch.equal(loaded(pixel_values).logits, pruned.logits)
        assert pruned.token_counts[1] < pruned.token_counts[0]
        program = torch.export.export(loaded, (pixel_values,))
        torch.testing.assert_close(program.module()(pixel_values).logits, pruned.logits, atol=1e-5, rtol=1e-5)


def timm_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a transformers model in timm's published layout (timm/models/vision_transformer.py, eva.py)."""
    weights = {}
    for name, weight in model.state_dict().items():
        name = name.replace("model.layer.", "encoder.layer.").replace("encoder.layer.", "blocks.")
        name = name.replace("embeddings.patch_embeddings.projection.", "patch_embed.proj.")
        name = name.replace("embeddings.patch_embeddings.", "patch_embed.proj.")
        name = name.replace("embeddings.cls_token", "cls_token").replace("embeddings.position_embeddings", "pos_embed")
        name = name.replace("embeddings.register_tokens", "reg_token").replace("layers.", "blocks.")
        name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        name = name.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")
        name = name.replace("mlp.up_proj", "mlp.fc1").replace("mlp.down_proj", "mlp.fc2")
        name = re.sub(r"attention\.attention\.([qkv])\w+", r"attention.\1_proj", name)  # transformers 5.17
        name = name.replace("attention.output.dense", "attention.o_proj")
        name = name.replace("attention.o_proj", "attn.proj").replace("layernorm.", "norm.")
        if not name.startswith("pooler") and "mask_token" not in name:
            weights[name] = weight.clone()
    for index in range(SIZES["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{index}.attention.{part}_proj.{kind}", None) for part in "qkv"]
            if parts[0] is not None:
                parts = [torch.zeros_like(parts[0]) if part is None else part for part in parts]
                weights[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
    return weights


@pytest.mark.parametrize("form", ["safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("family", ["dinov3", "dinov2", "dinov2 registers", "vit"])
def test_timm_models(family, form, tmp_path):
    backbone = build(family)
    assert SIZES["hidden_size"] == HEAD_DIM
    weights = timm_names(backbone) | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": f"vit_tiny_{family}", "num_classes": 10}))
    if form == "safetensors":
        save_file(weights, tmp_path / "model.safetensors")
    else:
        torch.save(weights, tmp_path / form)
    eps = {"layer_norm_eps": backbone.config.layer_norm_eps} if family == "vit" else {}
    model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), **HEAD, **eps) if not eps else None
    if model is None:  # transformers' ViT has an epsilon of its own, timm's is 1e-6
        for module in backbone.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-6
        model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), **HEAD)
    pixel_values = torch.randn(2, 3, 48, 48)
    assert_same_states(ours_of(model, pixel_values), states_of(backbone, pixel_values))


def test_a_retfound_file(tmp_path, caplog):
    """The encoder of a MAE under `model`, its decoder and the arguments of its training beside it."""
    backbone = build("mae")
    for module in backbone.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    decoder = {"decoder_pos_embed": torch.zeros(1, 65, 32), "decoder_blocks.0.norm1.weight": torch.ones(32)}
    path = tmp_path / "RETFound_cfp_weights.pth"
    torch.save({"model": timm_names(backbone) | decoder | {"mask_token": torch.zeros(1, 1, 32)}, "epoch": 3}, path)
    model = Reg4PruForSemanticSegmentation.from_backbone(str(path), **HEAD)
    assert LICENCES["retfound"] == "CC BY-NC 4.0 (no commercial use)"
    pixel_values = torch.randn(2, 3, 64, 64)
    assert_same_states(ours_of(model, pixel_values), states_of(backbone, pixel_values))


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickled_code_is_never_run(tmp_path, capsys):
    torch.save({"model": {"cls_token": torch.zeros(1)}, "args": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path / "weights.pth"))
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(("old", "new"), [(14, 16), (16, 32), (8, 8)])
def test_a_resampled_kernel_embeds_enlarged_patches_alike(old, new):
    kernel, patch = torch.randn(5, 3, old, old), torch.randn(2, 3, old, old)
    resampled = resample_patch_kernel(kernel, new)
    enlarged = torch.nn.functional.interpolate(
        patch.double(), size=(new, new), mode="bilinear", antialias=True, align_corners=False
    )
    embedded = torch.einsum("bcij,dcij->bd", enlarged, resampled.double())
    torch.testing.assert_close(embedded, torch.einsum("bcij,dcij->bd", patch, kernel).double(), atol=1e-3, rtol=1e-4)


def test_another_patch_size_resamples_the_kernel(tmp_path):
    build("dinov2").save_pretrained(tmp_path)
    model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), **{**HEAD, "image_size": 96}, patch_size=16)
    assert model.embeddings.patch_embeddings.weight.shape[-1] == 16
    assert model.config.position_grid == [8, 8]
    assert model(torch.randn(1, 3, 96, 96)).logits.shape[-1] == 12


def test_hub_arguments_are_not_stored_in_the_configuration(tmp_path):
    build("vit").save_pretrained(tmp_path)
    model = Reg4PruForSemanticSegmentation.from_backbone(
        str(tmp_path), **HEAD, token="hf_secret", revision="main", cache_dir=str(tmp_path), dtype=torch.bfloat16
    )
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "model")
    written = (tmp_path / "model" / "config.json").read_text()
    assert "hf_secret" not in written
    assert "cache_dir" not in written


@pytest.mark.parametrize(
    ("wanted", "got"), [("bfloat16", torch.bfloat16), ("auto", torch.float16), (None, torch.float32)]
)
def test_dtype_is_given_as_in_from_pretrained(tmp_path, wanted, got):
    build("vit").half().save_pretrained(tmp_path)
    model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), **HEAD, dtype=wanted)
    assert model.dtype == got
    with pytest.raises(ValueError, match="`dtype` is 'int8': it must be 'auto' or one of float32"):
        Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), **HEAD, dtype="int8")


def test_unknown_fields_are_refused(tmp_path):
    build("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="keep_rate"):
        Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), keep_rate=0.3)
    with pytest.raises(Exception, match="Reg4PruConfig has no field keep_rate"):
        Reg4PruConfig(keep_rate=0.3)
    config = Reg4PruConfig.from_dict(Reg4PruConfig().to_dict() | {"of_a_later_version": 1})
    assert "of_a_later_version" not in config.to_dict()


def test_missing_weights_are_named(tmp_path):
    weights = timm_names(build("vit"))
    del weights["blocks.2.norm1.weight"]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"missing \['layers.2.norm1.weight'\]"):
        Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path / "weights.safetensors"), **HEAD)


def test_positions_of_a_rectangular_grid(tmp_path):
    torch.manual_seed(4)
    backbone = ViTModel(ViTConfig(**{**SIZES, "image_size": (48, 96)}, **MLP)).eval()
    torch.nn.init.normal_(backbone.embeddings.position_embeddings)
    backbone.save_pretrained(tmp_path)
    model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path), **HEAD)
    assert model.config.position_grid == [6, 12]
    pixel_values = torch.randn(2, 3, 48, 96)  # transformers itself has no other size for it
    with torch.no_grad():
        theirs = list(backbone(pixel_values, output_hidden_states=True).hidden_states)
    assert_same_states(ours_of(model, pixel_values), theirs)
    weights = timm_names(backbone)  # whose names tell of no grid
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="table of positions has 73 entries: it must be a grid of 8 x 8"):
        Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path / "weights.safetensors"), **HEAD)


def test_the_number_of_heads_of_timm_models_can_be_given(tmp_path):
    save_file(timm_names(build("vit")), tmp_path / "weights.safetensors")
    for heads in ({"num_attention_heads": 4}, {}):
        model = Reg4PruForSemanticSegmentation.from_backbone(str(tmp_path / "weights.safetensors"), **HEAD, **heads)
        assert model.config.num_attention_heads == heads.get("num_attention_heads", 1)
    with pytest.raises(Exception, match=r"`num_attention_heads` 5: the width must be a multiple of 5"):
        Reg4PruForSemanticSegmentation.from_backbone(
            str(tmp_path / "weights.safetensors"), **HEAD, num_attention_heads=5
        )
