"""Inference with physically removed tokens, against a plain forward pass that keeps all of them in place."""

import pytest
import torch
import torch.nn.functional as F

from modeling_reg4pru.token_selectors import stage_counts

from ..variants import VARIANTS, give_corrections_weights

QUERY_LAYER = 4  # of the 6 layers of tiny_config


def reference_layer(layer, states, visible, angles):
    """One DINOv3 layer, written out: keys that are not visible get -inf. Everything in (batch, tokens, channels)."""
    heads, num_patches = layer.attention.num_heads, angles[0].shape[-2]
    special = states.shape[1] - num_patches
    normed = layer.norm1(states)

    def split(projection, positions):
        vectors = projection(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
        if positions:
            patches = vectors[:, :, special:]
            first, second = patches.chunk(2, dim=-1)
            turned = patches * angles[0] + torch.cat((-second, first), dim=-1) * angles[1]
            vectors = torch.cat((vectors[:, :, :special], turned), dim=2)
        return vectors

    query, key, value = (
        split(layer.attention.q_proj, True),
        split(layer.attention.k_proj, True),
        split(layer.attention.v_proj, False),
    )
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(
        ~F.pad(visible, (states.shape[1] - visible.shape[1], 0), value=True)[:, None, None], float("-inf")
    )
    attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    states = states + layer.layer_scale1(layer.attention.o_proj(attended))
    return states + layer.layer_scale2(layer.mlp(layer.norm2(states)))


def cell_means(values, dropped, grid_size, num_cells):
    """Means of the dropped tokens `(num_patches,)` of each cell, or of all of its tokens where it has lost none."""
    means = []
    for cell in range(num_cells**2):
        inside = [
            row * grid_size[1] + column
            for row in range(grid_size[0])
            for column in range(grid_size[1])
            if (row * num_cells // grid_size[0], column * num_cells // grid_size[1]) == divmod(cell, num_cells)
        ]
        lost = [token for token in inside if dropped[token]]
        means.append(values[lost or inside].mean(0))
    return torch.stack(means)


def reference_forward(model, pixel_values, rates):
    """
    Every token keeps its place. Dropped tokens are hidden from the attention of the others and frozen, until the
    reactivation layer. Context tokens stand between the special tokens and these.
    """
    config = model.config
    angles = model.rope_embeddings(pixel_values)
    states = model.embeddings(pixel_values)
    special, patches = states[:, :5], states[:, 5:]
    batch, num_patches, _ = patches.shape
    active = torch.ones(batch, num_patches, dtype=torch.bool)
    keep_masks, come_back = [], None
    context, turns, cells = patches[:, :0], angles, config.context_grid
    grid = (pixel_values.shape[2] // 8, pixel_values.shape[3] // 8)
    for index, layer in enumerate(model.layers):
        if index == config.first_query_layer:
            special = torch.cat((model.query.weight[None].expand(batch, -1, -1), special), dim=1)
        given, next_active = patches, active
        new = reference_layer(layer, torch.cat((special, context, patches), dim=1), active, turns)
        special, context, new = new.split((special.shape[1], context.shape[1], num_patches), dim=1)
        patches = torch.where(active[..., None], new, patches)
        if index in config.pruning_layers:
            stage = config.pruning_layers.index(index)
            count = stage_counts(config, rates, num_patches)[stage]
            scores = model.selectors[stage](patches if model.selectors[stage].scores_output else given)
            if config.selection_pool == "active":
                scores = scores.masked_fill(~active, float("-inf"))
            next_active = torch.zeros_like(active).scatter(1, scores.topk(count, dim=1).indices, True)
            keep_masks.append(next_active)
            if cells and stage == 0:
                lost = [(~kept).tolist() for kept in next_active]
                context = torch.stack([cell_means(patches[i], lost[i], grid, cells) for i in range(batch)])
                turns = tuple(
                    torch.stack([torch.cat((cell_means(table, one, grid, cells), table)) for one in lost])[:, None]
                    for table in angles
                )
            if config.drift_correction:  # of what leaves now; of what was away already, what it left with
                guesses = patches + model.drift_corrections[stage](patches)
                come_back = torch.where(active[..., None], guesses, patches if come_back is None else come_back)
        if index == config.reactivation_layer:
            if come_back is not None:
                patches = torch.where(active[..., None], patches, come_back)
            next_active = torch.ones_like(active)
            context, turns = context[:, :0], angles
        active = next_active
    queries, patches = model.layernorm(special[:, : config.num_queries]), model.layernorm(patches)
    pixels = model.upscale_block(patches.transpose(1, 2).unflatten(2, grid))
    return torch.einsum("bqc,bchw->bqhw", model.mask_head(queries), pixels), torch.stack(keep_masks, 1)


@pytest.mark.parametrize("reactivation_layer", [3, 4, 5], ids=["before_the_queries", "after_L-2", "after_L-1"])
@pytest.mark.parametrize("pool", ["active", "all"])
@pytest.mark.parametrize("selector", ["mlp", "foreground_mlp", "divergence", "learned_query", "divergence_query"])
@pytest.mark.parametrize("drift_correction", [False, True], ids=["as_they_left", "corrected"])
@torch.no_grad()
def test_removing_tokens_equals_hiding_and_freezing_them(
    tiny_model, pixel_values, drift_correction, selector, pool, reactivation_layer
):
    model = tiny_model(
        selector=selector,
        train_pruning="hard",
        selection_pool=pool,
        pruning_layers=[0, 1, 2],
        reactivation_layer=reactivation_layer,
        drift_correction=drift_correction,
        routing=False,
    ).double()
    give_corrections_weights(model, std=0.2)
    pixel_values = pixel_values[..., :48].double()  # 8 x 6 patches: rows and columns cannot be confused
    rates = (0.7, 0.6, 0.5)
    outputs = model(pixel_values, keep_rates=rates, output_keep_masks=True)
    masks, keep_masks = reference_forward(model, pixel_values, rates)
    assert torch.equal(outputs.keep_masks, keep_masks.unflatten(2, (8, 6)))
    torch.testing.assert_close(outputs.masks_queries_logits, masks, atol=1e-11, rtol=1e-9)
    if pool == "all":
        came_back = keep_masks[:, 2] & ~keep_masks[:, 1]
        assert came_back.any()
    else:
        assert not (keep_masks[:, 1:] & ~keep_masks[:, :-1]).any()
    # pruning does matter here, so that the agreement means something
    assert (model(pixel_values, keep_rates=1.0).masks_queries_logits - masks).abs().max() > 1e-3


@pytest.mark.parametrize("reactivation_layer", [3, 4, 5], ids=["before_the_queries", "after_L-2", "after_L-1"])
@pytest.mark.parametrize("pool", ["active", "all"])
@pytest.mark.parametrize("num_cells", [1, 3])
@torch.no_grad()
def test_context_tokens_stand_for_what_the_first_stage_drops(
    tiny_model, pixel_values, num_cells, pool, reactivation_layer
):
    fields = {"selection_pool": pool, "pruning_layers": [0, 1, 2], "reactivation_layer": reactivation_layer}
    model = tiny_model(context_grid=num_cells, **VARIANTS["default"], **fields).double()
    give_corrections_weights(model, std=0.2)
    pixel_values = pixel_values[..., :48].double()
    outputs = model(pixel_values, keep_rates=(0.7, 0.6, 0.5), output_keep_masks=True, output_token_ids=True)
    masks, keep_masks = reference_forward(model, pixel_values, (0.7, 0.6, 0.5))
    assert torch.equal(outputs.keep_masks, keep_masks.unflatten(2, (8, 6)))
    torch.testing.assert_close(outputs.masks_queries_logits, masks, atol=1e-11, rtol=1e-9)
    for layer, (count, ids) in enumerate(zip(outputs.token_counts.tolist(), outputs.token_ids, strict=True)):
        context = num_cells**2 if 0 < layer <= reactivation_layer else 0
        assert count == ids.shape[1] + context + 5 + (layer >= QUERY_LAYER)
    without = tiny_model(**VARIANTS["default"], **fields).double()
    without.load_state_dict(model.state_dict())
    assert (without(pixel_values, keep_rates=(0.7, 0.6, 0.5)).masks_queries_logits - masks).abs().max() > 1e-3
    dense = without(pixel_values, keep_rates=None).logits
    for rates in (None, 1.0):  # where nothing is dropped, there is nothing to stand for
        assert torch.equal(model(pixel_values, keep_rates=rates).logits, dense)


@torch.no_grad()
def test_context_tokens_belong_to_the_first_stage_that_drops_any(tiny_model, pixel_values):
    model = tiny_model(context_grid=2)
    counts = model(pixel_values, keep_rates=(1.0, 0.5, 0.5), output_token_ids=True)
    extra = [int(count) - ids.shape[1] for count, ids in zip(counts.token_counts, counts.token_ids, strict=True)]
    assert extra == [5, 5, 5, 5 + 4, 6 + 4, 6]  # stages 0, 2, 3; the query before layer 4, reactivation after it


def test_cells_smaller_than_a_patch_are_refused(tiny_model, pixel_values):
    with pytest.raises(ValueError, match="`context_grid` is 7, but an image has only 8 x 6 patches"):
        tiny_model(context_grid=7)(pixel_values[..., :48])


@pytest.mark.parametrize("pool", ["active", "all"])
@pytest.mark.parametrize("size", [64, 128])
@torch.no_grad()
def test_token_counts_are_what_the_configuration_says(tiny_model, pixel_values, pool, size):
    model = tiny_model(selection_pool=pool, keep_rates=[0.7, 0.6, 0.5])
    patches = (size // 8) ** 2
    pixel_values = F.interpolate(pixel_values, size=(size, size))
    outputs = model(pixel_values, output_keep_masks=True)
    kept = {64: [43, 27, 10], 256: [179, 107, 50]}[patches]  # the last with the query, from layer 4 on
    assert stage_counts(model.config, (0.7, 0.6, 0.5), patches) == kept
    # stages 0, 2, 3; the query enters before layer 4; reactivation after layer 4
    wanted = (patches, kept[0], kept[0], kept[1], kept[2] + 1, patches + 1)
    assert outputs.token_counts.tolist() == [5 + count for count in wanted]
    assert outputs.keep_masks.flatten(2).sum(-1).tolist() == [kept] * 3


@pytest.mark.parametrize("num_register_tokens", [0, 3, 8])
@torch.no_grad()
def test_prefix_and_kept_tokens_are_a_multiple_of_8(tiny_model, pixel_values, num_register_tokens):
    model = tiny_model(num_register_tokens=num_register_tokens, keep_rates=0.6)
    counts = model(pixel_values).token_counts.tolist()
    assert counts[0] == 1 + num_register_tokens + 64
    assert all(count % 8 == 0 for count in counts[1:4])


@pytest.mark.parametrize("pool", ["active", "all"])
@torch.no_grad()
def test_keep_rate_one_equals_dense_bit_for_bit(tiny_model, pixel_values, pool):
    model = tiny_model(selection_pool=pool, keep_rates=0.5)
    dense = tiny_model(pruning_layers=[], selection_pool=pool, keep_rates=1.0)
    assert len(model.selectors) == 3
    assert len(dense.selectors) == 0
    dense.load_state_dict({name: weight for name, weight in model.state_dict().items() if "selectors" not in name})
    wanted = dense(pixel_values).logits
    assert not torch.equal(model(pixel_values).logits, wanted)
    assert torch.equal(model(pixel_values, keep_rates=1.0).logits, wanted)
    assert torch.equal(model(pixel_values, keep_rates=[1.0, 1, 1.0]).logits, wanted)
    assert torch.equal(model(pixel_values, keep_rates=None).logits, wanted)
    for rates in (1.0, None):
        model.set_keep_rates(rates)
        assert torch.equal(model(pixel_values).logits, wanted)
    # rounding up to a multiple of 8 can leave nothing to prune
    assert torch.equal(model(pixel_values, keep_rates=0.999).logits, wanted)


@torch.no_grad()
def test_keeping_all_tokens_through_the_bank_equals_dense(tiny_model, pixel_values, monkeypatch):
    """Where a count says that nothing is dropped the gather is skipped, so here the selection itself keeps all."""
    model = tiny_model(selection_pool="all", keep_rates=0.5).double()
    pixel_values = pixel_values.double()
    dense = model(pixel_values, keep_rates=1.0).logits

    def keep_all(scores, count, pool_ids):
        assert pool_ids is None
        return scores.argsort(dim=1)

    monkeypatch.setattr("modeling_reg4pru.token_pruning.select_tokens", keep_all)
    outputs = model(pixel_values)
    assert set(outputs.token_counts.tolist()[:4]) == {69}
    torch.testing.assert_close(outputs.logits, dense, atol=1e-11, rtol=1e-9)


@torch.no_grad()
def test_keep_rates_per_call_leave_the_configuration_alone(tiny_model, pixel_values):
    model = tiny_model(keep_rates=0.7)
    before = model(pixel_values).logits
    assert not torch.equal(model(pixel_values, keep_rates=[0.5, 0.4, 0.3]).logits, before)
    assert model.config.keep_rates == 0.7
    assert torch.equal(model(pixel_values).logits, before)
    model.set_keep_rates([0.5, 0.4, 0.3])
    assert model.config.keep_rates == [0.5, 0.4, 0.3]
    assert not torch.equal(model(pixel_values).logits, before)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(tiny_model, pixel_values):
    model = tiny_model(keep_rates=0.6)
    together = model(pixel_values, output_keep_masks=True)
    for index in range(3):
        alone = model(pixel_values[index : index + 1], output_keep_masks=True)
        assert torch.equal(alone.keep_masks[0], together.keep_masks[index])
        torch.testing.assert_close(alone.logits[0], together.logits[index], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_random_selection_is_a_control(tiny_model, pixel_values):
    model = tiny_model(selector="random", train_pruning="hard", keep_rates=0.5)
    masks = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        masks.append(model(pixel_values, output_keep_masks=True).keep_masks)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0][0], masks[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pool", ["active", "all"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_no_nan_at_keep_rate_a_tenth(tiny_model, pixel_values, implementation, pool, dtype):
    model = tiny_model(selection_pool=pool, keep_rates=0.1).to(dtype)
    model.set_attn_implementation(implementation)
    outputs = model(pixel_values)
    assert outputs.logits.dtype == dtype
    assert outputs.logits.isfinite().all()
    assert outputs.token_counts.tolist()[3] == 8


@torch.no_grad()
def test_no_keep_rates_mean_no_pruning_everywhere(tiny_model, pixel_values, tmp_path):
    """In a call, in the method and in the configuration; a call without any takes those of the configuration."""
    model = tiny_model(keep_rates=0.5)
    pruned, dense = model(pixel_values).logits, model(pixel_values, keep_rates=None).logits
    assert torch.equal(model(pixel_values, keep_rates="config").logits, pruned)
    assert torch.equal(model(pixel_values, keep_rates=1.0).logits, dense)
    assert not torch.equal(pruned, dense)
    model.set_keep_rates(None)
    model.save_pretrained(tmp_path)
    for one in (model, type(model).from_pretrained(tmp_path), tiny_model(keep_rates=None)):
        assert one.config.keep_rates is None
        assert torch.equal(one.eval()(pixel_values).logits, dense)
