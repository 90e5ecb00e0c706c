"""EoMT checkpoints load as they are and give equal outputs, in evaluation and in masked training."""

import logging

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    EomtImageProcessorPil,
)

from modeling_reg4pru import Reg4PruForSemanticSegmentation

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
    "num_upscale_blocks": 1,
    "num_blocks": 2,
    "num_queries": 5,
    "num_labels": 3,
    "num_register_tokens": 3,
    "train_num_points": 128,
    "initializer_range": 0.15,
}


@pytest.fixture
def eomt():
    torch.manual_seed(4)
    model = EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**SIZES)).eval()
    model.attn_mask_probs.zero_()
    return model


def converted(eomt, folder, **fields):
    eomt.save_pretrained(folder)
    return Reg4PruForSemanticSegmentation.from_pretrained(folder, **fields)


@pytest.mark.parametrize("fields", [{"keep_rates": 1.0}, {"pruning_layers": []}], ids=str)
@torch.no_grad()
def test_unpruned_outputs_are_those_of_eomt(eomt, pixel_values, tmp_path, fields):
    wanted = eomt(pixel_values)
    outputs = converted(eomt, tmp_path, **fields)(pixel_values)
    torch.testing.assert_close(outputs.masks_queries_logits, wanted.masks_queries_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.class_queries_logits, wanted.class_queries_logits, atol=1e-5, rtol=1e-5)

    # EoMT's own processor, asked for the resolution of the logits
    processor = EomtImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 16}, do_split_image=False)
    results = processor.post_process_semantic_segmentation(
        wanted, target_sizes=[(16, 16)] * 3, return_segmentation_scores=True
    )
    scores = torch.stack([result.segmentation_scores for result in results])
    torch.testing.assert_close(outputs.logits.exp(), scores, atol=1e-5, rtol=1e-4)
    segmentation = torch.stack([result.segmentation for result in results])
    assert len(segmentation.unique()) > 1
    assert torch.equal(outputs.logits.argmax(1), segmentation)


@torch.no_grad()
def test_the_configuration_carries_over_although_the_defaults_differ(tmp_path):
    fields = {**SIZES, "id2label": {0: "a", 1: "b", 2: "c"}}
    for name in ("num_blocks", "hidden_size", "num_attention_heads", "num_queries", "num_labels"):
        del fields[name]  # left to EoMT's defaults, which are not ours: 4 blocks, 1024 wide, 16 heads, 200 queries
    EomtDinov3Config(**fields).save_pretrained(tmp_path)
    config = Reg4PruForSemanticSegmentation.config_class.from_pretrained(tmp_path, keep_rates=0.5)
    assert (config.num_blocks, config.hidden_size, config.num_attention_heads) == (4, 1024, 16)
    assert (config.num_queries, config.num_labels, config.image_size) == (200, 3, 64)
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    assert (config.model_type, config.keep_rates, config.pruning_layers) == ("reg4pru", 0.5, [0, 2, 3])


def test_the_report_says_that_only_the_selectors_are_new(eomt, tmp_path, caplog):
    eomt.save_pretrained(tmp_path)
    logging.getLogger("transformers").propagate = True
    try:
        with caplog.at_level(logging.WARNING):
            model, report = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        logging.getLogger("transformers").propagate = False
    selectors = {name for name in model.state_dict() if name.startswith("selectors.")}
    assert set(report["missing_keys"]) == selectors
    assert len(selectors) == 3 * 8
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert "selectors." in caplog.text
    assert "MISSING" in caplog.text


@torch.no_grad()
def test_pruning_an_eomt_checkpoint_needs_no_training(eomt, pixel_values, tmp_path):
    model = converted(eomt, tmp_path, keep_rates=0.5)
    outputs = model(pixel_values)
    assert outputs.token_counts.tolist()[1] == 32
    assert outputs.logits.isfinite().all()
    model.save_pretrained(tmp_path / "pruned")
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "pruned")
    assert torch.equal(loaded(pixel_values).logits, outputs.logits)


TRAINING = {"train_pruning": "none", "routing": False}


def predictions_of(model, method, *args):
    """What a method returned, call by call, in a training forward pass under one seed."""
    seen, original = [], getattr(model, method)
    setattr(model, method, lambda *inputs: seen.append(original(*inputs)) or seen[-1])
    torch.manual_seed(0)
    outputs = model.train()(*args)
    return seen, outputs


def test_masked_training_equals_that_of_eomt(eomt, pixel_values, tmp_path):
    """The predictions of every query layer, and with them the loss, are those of EoMT's full attention mask."""
    eomt.attn_mask_probs.fill_(1.0)
    model = converted(eomt, tmp_path, **TRAINING, masked_attention=True)
    labels = torch.randint(0, 3, (3, 64, 64))
    class_labels = [image.unique() for image in labels]
    mask_labels = [
        torch.stack([image == number for number in numbers]).float()
        for image, numbers in zip(labels, class_labels, strict=True)
    ]
    theirs, _ = predictions_of(eomt, "predict", pixel_values)
    ours, outputs = predictions_of(model, "predict", pixel_values)
    assert len(ours) == len(theirs) == 3
    for (masks, classes), (wanted_masks, wanted_classes) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(masks, wanted_masks, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(classes, wanted_classes, atol=1e-5, rtol=1e-4)
    assert torch.equal(outputs.masks_queries_logits, ours[-1][0])

    torch.manual_seed(1)
    parts = [model.criterion(masks, classes, labels) for masks, classes in ours]
    torch.manual_seed(1)
    wanted = [eomt.get_loss(eomt.get_loss_dict(*pair, mask_labels, class_labels, None)) for pair in theirs]
    total = sum(sum(part.values()) for part in parts)
    assert total.item() == pytest.approx(sum(wanted).item(), rel=1e-4)

    # the mask is not a formality: without it the last prediction is another one
    model.config.masked_attention = False
    free, _ = predictions_of(model, "predict", pixel_values)
    assert len(free) == 1
    assert (free[-1][0] - theirs[-1][0]).abs().max() > 1e-3


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_query_sees_only_its_mask(tiny_model, pixel_values, implementation, monkeypatch):
    model = tiny_model(**TRAINING).train()
    model.set_attn_implementation(implementation)
    masks = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[4])) for layer in model.layers]
    model.set_mask_annealing(0.0)
    seen, _ = predictions_of(model, "predict", pixel_values)
    assert masks[:4] == [None] * 4
    for mask, (logits, _) in zip(masks[4:], seen, strict=False):
        inside = F.interpolate(logits, size=(8, 8), mode="bilinear").flatten(2) > 0
        assert mask[:, :, :6].all()
        assert torch.equal(mask[:, :, 6:], inside)
        assert 0 < inside.float().mean() < 1
    model.set_mask_annealing(1.0)
    masks.clear()
    model(pixel_values)
    assert all(mask.all() for mask in masks[4:])
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("fields", [{"masked_attention": False}, {}], ids=str)
def test_no_mask_where_it_is_off_or_at_inference(tiny_model, pixel_values, fields):
    model = tiny_model(**TRAINING, **fields)
    assert (model.attn_mask_probs == 1).all()
    model.train("masked_attention" in fields)
    masks = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[4]))
    assert model(pixel_values).token_counts.tolist()
    assert masks == [None] * 6


def test_the_mask_is_off_inside_a_routing_window(tiny_model, pixel_values):
    """Window: layers 3 and 4 of 6, queries before layer 4."""
    model = tiny_model(routing_window=[2, 4]).train()
    masks = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[4]))
    model(pixel_values)
    assert [mask is None for mask in masks] == [True] * 5 + [False]


def test_the_mask_follows_the_tokens_that_pruning_left(tiny_model, pixel_values):
    model = tiny_model(train_pruning="hard", routing=False, reactivation_layer=5).train()
    masks = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: masks.append((inputs[4], inputs[0].shape[1])))
    model.attn_mask_probs.fill_(1.0)
    counts = model(pixel_values).token_counts.tolist()
    assert counts[4] < 70
    assert [mask.shape[2] for mask, _ in masks[4:]] == [count for _, count in masks[4:]] == list(counts[4:])


def test_annealing_goes_block_by_block(tiny_model):
    model = tiny_model(num_blocks=4)
    for block, (start, end) in enumerate([(2, 4), (5, 7), (8, 10), (11, 13)]):
        for progress, wanted in (
            (0.0, 1.0),
            (start / 15, 1.0),
            ((start + 0.5) / 15, 0.75**0.9),
            ((start + 1) / 15, 0.5**0.9),
            (end / 15, 0.0),
            (1.0, 0.0),
        ):
            model.set_mask_annealing(progress)
            assert model.attn_mask_probs[block].item() == pytest.approx(wanted, abs=1e-6)
    schedule = []
    for step in range(101):
        model.set_mask_annealing(step / 100)
        schedule.append(model.attn_mask_probs.clone())
    schedule = torch.stack(schedule)
    assert (schedule.diff(dim=0) <= 0).all()
    assert (schedule.diff(dim=1) >= 0).all()  # earlier blocks are free earlier


@pytest.mark.parametrize("swiglu", [False, True])
def test_eomt_on_dinov2(tmp_path, caplog, swiglu):
    """Unpruned output is that of transformers; a warning tells of masks that it applies at inference."""
    torch.manual_seed(3)
    config = EomtConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=8, num_blocks=2,
        num_queries=5, mlp_ratio=2, num_upscale_blocks=1, id2label={0: "a", 1: "b", 2: "c"}, use_swiglu_ffn=swiglu,
    )  # fmt: skip
    eomt = EomtForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for parameter in eomt.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    eomt.attn_mask_probs.zero_()
    eomt.save_pretrained(tmp_path)
    model = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path, keep_rates=0.5).eval()
    assert model.config.keep_rates == 0.5
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs, ours = eomt(pixel_values), model(pixel_values, keep_rates=1.0)
        torch.testing.assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.class_queries_logits, theirs.class_queries_logits, atol=1e-4, rtol=1e-4)
        assert not torch.equal(model(pixel_values).logits, ours.logits)
    model.save_pretrained(tmp_path / "ours")
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values, keep_rates=1.0).logits, ours.logits)

    eomt.attn_mask_probs.fill_(1.0)
    eomt.save_pretrained(tmp_path)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    ours_logger = logging.getLogger("modeling_reg4pru.modeling_reg4pru")
    ours_logger.addHandler(handler)
    try:
        Reg4PruForSemanticSegmentation.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(handler)
        ours_logger.removeHandler(handler)
    assert any("masks the attention of its queries at inference" in message for message in said)
