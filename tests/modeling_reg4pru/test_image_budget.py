"""One budget for all tiles of an image, against a plain reference that runs tile by tile."""

import numpy as np
import pytest
import torch

from modeling_reg4pru import Reg4PruImageProcessor, image_budget, tiled_inference
from modeling_reg4pru.blend_shares import blend_shares, visible_patches
from modeling_reg4pru.tiled_inference import predict_images

from .test_blend_shares import offsets_of
from .test_pruned_inference import cell_means

NUM_PATCHES = 64  # of a tile
VARIANTS = {
    "rotary": {},
    "learned positions": {"positions": "learned"},
    "all tokens compete": {"selection_pool": "all"},
    "drift correction": {"selector": "foreground_mlp", "train_pruning": "hard", "drift_correction": True},
    "reactivation after the last layer": {"reactivation_layer": 5},
    "context tokens": {"context_grid": 3},
    "context tokens without positions": {"context_grid": 2, "positions": "learned"},
    "before the queries": {"reactivation_layer": 3, "pruning_layers": [0, 1, 2]},
}


@pytest.fixture
def tiles():
    """Tiles of two images, of which the second is smaller than a tile in one direction."""
    offsets = torch.cat((offsets_of(100, 150, 64, 16), offsets_of(120, 40, 64, 16, image=1)))
    return torch.randn(len(offsets), 3, 64, 64, generator=torch.Generator().manual_seed(4)), offsets


def reference(
    model, pixel_values: torch.Tensor, offsets: torch.Tensor, rate: float, pixel_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, list]:
    """
    Tile by tile, with lists of ids instead of a bank: layer after layer for all tiles, as a stage needs all of them.
    """
    config = model.config
    shares = blend_shares(offsets, config.patch_size, 8).flatten(1)
    if pixel_mask is not None:
        for tile, mask in enumerate(pixel_mask):
            for token in range(NUM_PATCHES):
                top, left = token // 8 * config.patch_size, token % 8 * config.patch_size
                shares[tile, token] *= mask[top : top + config.patch_size, left : left + config.patch_size].max()
    images = [torch.where(offsets[:, 0] == image)[0].tolist() for image in offsets[:, 0].unique()]
    states = list(model.embeddings(pixel_values))
    rope = model.rope_embeddings(pixel_values)
    special, context_rope = config.num_prefix_tokens, None
    grids = [tokens[special:] * (share > 0)[:, None] for tokens, share in zip(states, shares, strict=True)]
    changes = [torch.zeros_like(grid) for grid in grids]
    ids = [torch.where(share > 0)[0] for share in shares]
    visible = [len(one) for one in ids]
    states = [torch.cat((tokens[:special], grid[kept])) for tokens, grid, kept in zip(states, grids, ids, strict=True)]
    kept_by_stage = []
    for index, layer in enumerate(model.layers):
        if index == config.first_query_layer:
            states = [torch.cat((model.query.weight, tokens)) for tokens in states]
            special += config.num_queries
        stage = config.pruning_layers.index(index) if index in config.pruning_layers else None
        selector = None if stage is None else model.selectors[stage]
        before = [tokens.clone() for tokens in states]
        for tile, kept in enumerate(ids):
            cos, sin = (None, None) if rope is None else (table[kept][None, None] for table in rope)
            if context_rope is not None:
                cos, sin = (
                    torch.cat((table[None, None], active), dim=2)
                    for table, active in zip(context_rope[tile], (cos, sin), strict=True)
                )
            states[tile] = layer(states[tile][None], cos, sin)[0]
        if stage is not None:
            read = states if selector.scores_output else before
            scores = torch.full((len(states), NUM_PATCHES), -torch.inf)
            for tile, kept in enumerate(ids):
                full = grids[tile].clone()
                full[kept] = read[tile][special:]
                pool = kept if config.selection_pool == "active" else torch.where(shares[tile] > 0)[0]
                scores[tile, pool] = selector(full[pool][None])[0] + shares[tile, pool].log()
            keeps = torch.zeros_like(scores, dtype=torch.bool)
            for members in images:
                count = round(rate ** (stage + 1) * sum(visible[tile] for tile in members))
                best = scores[members].flatten().topk(count).indices
                keeps[members] = (
                    torch.zeros(scores[members].numel()).index_fill(0, best, 1.0).view(-1, NUM_PATCHES).bool()
                )
            context = [torch.zeros(0, config.hidden_size)] * len(ids)
            if config.context_grid and stage == 0:
                lost = [
                    [token in kept and not keeps[tile, token] for token in range(NUM_PATCHES)]
                    for tile, kept in enumerate(map(torch.Tensor.tolist, ids))
                ]
                for tile, kept in enumerate(ids):
                    grids[tile][kept] = states[tile][special:]
                    context[tile] = cell_means(grids[tile], lost[tile], (8, 8), config.context_grid)
                if rope is not None:
                    context_rope = [
                        [cell_means(table, one, (8, 8), config.context_grid) for table in rope] for one in lost
                    ]
            for tile, kept in enumerate(ids):
                grids[tile][kept] = states[tile][special:]
                if model.drift_corrections:
                    leaves = kept[~keeps[tile][kept]]
                    changes[tile][leaves] = model.drift_corrections[stage](grids[tile][leaves][None])[0]
                ids[tile] = torch.where(keeps[tile])[0]
                states[tile] = torch.cat((states[tile][:special], context[tile], grids[tile][ids[tile]]))
            special += len(context[0])
            kept_by_stage.append(keeps)
        if index == config.reactivation_layer:
            special_left, context_rope = special - config.context_grid**2, None
            for tile, kept in enumerate(ids):
                grids[tile][kept] = states[tile][special:]
                grids[tile] += changes[tile]
                ids[tile] = torch.where(shares[tile] > 0)[0]
                states[tile] = torch.cat((states[tile][:special_left], grids[tile][ids[tile]]))
            special = special_left
    for tile, kept in enumerate(ids):
        grids[tile][kept] = states[tile][special:]
    queries = torch.stack([tokens[: config.num_queries] for tokens in states])
    masks, _ = model.predict(queries, torch.stack(grids), (8, 8))
    return masks, kept_by_stage


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_tiles_are_what_single_tiles_are(tiny_model, tiles, name):
    model = tiny_model(**VARIANTS[name], allocation="image", blend_share_weight=1.0)
    for correction in model.drift_corrections:
        torch.nn.init.normal_(correction.fc2.weight)
    with torch.no_grad():
        masks, kept = reference(model, *tiles, 0.6)
        outputs = model(tiles[0], keep_rates=0.6, patch_offsets=tiles[1], output_keep_masks=True)
    for stage, keeps in enumerate(kept):
        assert outputs.keep_masks[:, stage].flatten(1).equal(keeps)
    torch.testing.assert_close(outputs.masks_queries_logits, masks, rtol=1e-4, atol=1e-4)
    assert len(set(kept[-1].sum(1).tolist())) > 2, "the tiles keep different numbers"


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("rotary", 0.6),
        ("rotary", 1.0),
        ("rotary", None),
        ("all tokens compete", 0.6),
        ("drift correction", 0.6),
        ("context tokens", 0.6),
    ],
)
def test_what_shows_nothing_is_never_computed(tiny_model, tiles, name, rate):
    """A disk is the field of view of each tile; one tile shows nothing at all."""
    model = tiny_model(**VARIANTS[name], allocation="image", blend_share_weight=1.0)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    masks = [(rows - 20) ** 2 + (columns - 30) ** 2 < (4 * index) ** 2 for index in range(len(tiles[0]))]
    pixel_mask = torch.stack(masks)
    with torch.no_grad():
        wanted, kept = reference(model, *tiles, rate or 1.0, pixel_mask)
        outputs = model(
            tiles[0], keep_rates=rate, patch_offsets=tiles[1], pixel_mask=pixel_mask, output_keep_masks=True
        )
        other = tiles[0].clone()
        shown = visible_patches(pixel_mask, model.config.patch_size)
        hidden = ~shown.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
        other.masked_fill_(hidden[:, None], 3.0)
        of_other = model(other, keep_rates=rate, patch_offsets=tiles[1], pixel_mask=pixel_mask)
    for stage, keeps in enumerate(kept):
        assert outputs.keep_masks[:, stage].flatten(1).equal(keeps)
    visible = (blend_shares(tiles[1], model.config.patch_size, 8) > 0) & shown
    assert outputs.token_counts[0].equal(visible.sum((1, 2)) + model.config.num_prefix_tokens)
    torch.testing.assert_close(outputs.masks_queries_logits, wanted, rtol=1e-4, atol=1e-4)
    assert of_other.masks_queries_logits.equal(outputs.masks_queries_logits)


@pytest.mark.parametrize("missing", [slice(1, None), slice(0, 5), slice(0, 6, 2)])
def test_missing_tiles_are_refused(tiny_model, tiles, missing):
    model = tiny_model(allocation="image")
    with pytest.raises(ValueError, match="tiles of an image of 100x150 pixels, but they share one budget"):
        model(tiles[0][:6][missing], patch_offsets=tiles[1][:6][missing])


def test_large_images_have_a_budget_for_every_so_many_tiles(tiny_model, monkeypatch):
    monkeypatch.setattr(image_budget, "BUDGET_TILES", 4)
    monkeypatch.setattr(tiled_inference, "BUDGET_TILES", 4)
    model = tiny_model(allocation="image", blend_share_weight=2.0)
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, num_labels=2, working_size=None)
    images = [np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((150, 180), (64, 90))]
    inputs = processor(images, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, keep_rates=0.5)
    whole = processor.post_process_probabilities(outputs)
    for prediction, probabilities in zip(predict_images(model, processor, images, 0.5), whole, strict=True):
        torch.testing.assert_close(prediction.probabilities, probabilities)
    for group in (slice(0, 4), slice(4, 8), slice(8, 12)):
        kept = model(**{name: values[group] for name, values in inputs.items()}, keep_rates=0.5).token_counts
        assert kept.equal(outputs.token_counts[:, group])


def test_ids_of_unequal_numbers_are_refused(tiny_model, tiles):
    with pytest.raises(ValueError, match="`output_token_ids=True` needs `allocation='tile'`"):
        tiny_model(allocation="image")(tiles[0], patch_offsets=tiles[1], output_token_ids=True)


def test_without_pruning_nothing_changes(tiny_model, tiles):
    model = tiny_model(allocation="image", blend_share_weight=2.0)
    with torch.no_grad():
        outputs = model(tiles[0], keep_rates=1.0, patch_offsets=tiles[1])
        assert outputs.logits.equal(model(tiles[0], keep_rates=None).logits)


def test_unpruned_tiles_go_in_batches_of_any_size(tiny_model):
    model = tiny_model(allocation="image")
    sizes = []
    model.embeddings.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, num_labels=2, working_size=None)
    image = np.random.default_rng(0).integers(0, 255, (100, 150, 3), dtype=np.uint8)
    for keep_rates, expected in ((None, [4, 2]), (1.0, [4, 2]), ([1.0, 1.0, 0.5], [6])):
        sizes.clear()
        list(predict_images(model, processor, [image], keep_rates, batch_size=4))
        assert sizes == expected
