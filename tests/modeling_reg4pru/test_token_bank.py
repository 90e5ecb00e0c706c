"""The token bank and the routing window."""

import pytest
import torch

from modeling_reg4pru.token_bank import TokenBank, gather_tokens, sample_routing_window

BATCH, PATCHES, WIDTH = 3, 24, 5


@pytest.fixture
def states():
    return torch.randn(BATCH, PATCHES, WIDTH)


def random_ids(count, pool=None):
    if pool is None:
        pool = torch.arange(PATCHES).expand(BATCH, -1)
    return pool.gather(1, torch.rand(pool.shape).argsort(1)[:, :count])


def test_routing_is_the_identity_on_untouched_tokens_and_keeps_positions(states):
    bank = TokenBank(states)
    bank.route(12)
    routed = bank.routed_ids
    bank.write(bank.read() + 1)
    bank.rejoin()
    expected = states.clone()
    for image in range(BATCH):
        for token in routed[image]:
            expected[image, token] += 1
    assert bank.active_ids is None
    torch.testing.assert_close(bank.read(), expected, atol=0, rtol=0)


def test_an_empty_routing_window_changes_nothing(states):
    bank = TokenBank(states)
    bank.route(7)
    bank.write(bank.read())
    bank.rejoin()
    assert torch.equal(bank.read(), states)


@pytest.mark.parametrize("num_routed", [1, 5, 10])
@pytest.mark.parametrize("kept", [None, 10])
def test_routed_tokens_are_some_of_the_kept(states, num_routed, kept):
    bank = TokenBank(states)
    if kept is not None:
        bank.prune(random_ids(kept))
    assert bank.num_kept == (kept or PATCHES)
    bank.route(num_routed)
    assert bank.active_ids.shape == (BATCH, num_routed)
    for image in range(BATCH):
        chosen = set(bank.active_ids[image].tolist())
        assert len(chosen) == num_routed
        assert chosen <= (set(range(PATCHES)) if kept is None else set(bank.kept_ids[image].tolist()))


def test_routed_tokens_are_uniform_and_differ_between_images(states):
    counts = torch.zeros(PATCHES)
    equal_images = 0
    for _ in range(300):
        bank = TokenBank(states)
        bank.route(12)
        counts += torch.bincount(bank.routed_ids.flatten(), minlength=PATCHES)
        equal_images += set(bank.routed_ids[0].tolist()) == set(bank.routed_ids[1].tolist())
    frequency = counts / (300 * BATCH)
    assert (frequency - 0.5).abs().max() < 0.1  # six standard deviations
    assert equal_images == 0


def test_prune_and_reactivate_equal_a_plain_loop(states):
    bank = TokenBank(states)
    grid = states.clone()
    first = random_ids(16)
    bank.prune(first)
    active = bank.read() * 2
    bank.write(active)
    second = random_ids(7, first)
    bank.prune(second)
    bank.write(bank.read() * 3)
    bank.reactivate()
    for image in range(BATCH):
        for token in first[image]:
            grid[image, token] *= 2
        for token in second[image]:
            grid[image, token] *= 3
    torch.testing.assert_close(bank.read(), grid, atol=0, rtol=0)


def test_selection_among_all_brings_a_token_back_as_it_was(states):
    bank = TokenBank(states)
    ids = torch.arange(PATCHES).expand(BATCH, -1)
    bank.prune(ids[:, :8])
    bank.write(bank.read() + 1)
    bank.prune(ids[:, 6:12])
    expected = torch.cat((states[:, 6:8] + 1, states[:, 8:12]), dim=1)
    torch.testing.assert_close(bank.read(), expected, atol=0, rtol=0)


def test_pruning_inside_a_window_takes_effect_when_it_closes(states):
    bank = TokenBank(states)
    bank.route(12)
    routed = bank.routed_ids
    kept = random_ids(10)
    bank.prune(kept)
    assert torch.equal(bank.active_ids, routed)
    bank.rejoin()
    assert torch.equal(bank.active_ids, kept)
    bank.reactivate()
    assert torch.equal(bank.read(), states)


def test_write_does_not_modify_its_input(states):
    before = states.clone()
    bank = TokenBank(states)
    bank.prune(random_ids(5))
    bank.write(torch.zeros(BATCH, 5, WIDTH))
    assert torch.equal(states, before)


def test_gradients_reach_active_and_preserved_states(states):
    states.requires_grad_()
    bank = TokenBank(states)
    ids = random_ids(6)
    bank.prune(ids)
    bank.write(bank.read() * 3)
    bank.reactivate()
    bank.read().sum().backward()
    expected = torch.ones(BATCH, PATCHES).scatter(1, ids, 3.0)
    assert torch.equal(states.grad, expected[..., None].expand_as(states))


def test_follow_gathers_values_of_active_tokens(states):
    bank = TokenBank(states)
    table, own = torch.randn(PATCHES, 2), torch.randn(BATCH, PATCHES, 2)
    assert bank.follow(table) is table
    bank.prune(random_ids(9))
    bank.route(4)
    for image in range(BATCH):
        ids = bank.routed_ids[image]
        assert torch.equal(bank.follow(table)[image], table[ids])
        assert torch.equal(bank.follow(own)[image], own[image, ids])


def test_gather_without_ids_returns_all_tokens(states):
    assert gather_tokens(states, None) is states


@pytest.mark.parametrize("depth", range(3, 25))
def test_sampled_windows_lie_in_the_stated_ranges(depth):
    # U{2..L/2}; below 6 layers the range shrinks so that l < n <= L - 2 still fits
    starts = set(range(min(2, depth - 3), min(depth // 2, depth - 3) + 1))
    drawn = [sample_routing_window(depth) for _ in range(200 + 150 * depth)]
    assert {start for start, _ in drawn} == starts
    for start in starts:
        assert {end for begin, end in drawn if begin == start} == set(range(start + 1, depth - 1))


def test_distribution_of_windows_in_12_layers():
    drawn = [sample_routing_window(12) for _ in range(2000)]
    assert {start for start, _ in drawn} == {2, 3, 4, 5, 6}
    assert {end for _, end in drawn} == set(range(3, 11))
    frequency = torch.bincount(torch.tensor([start for start, _ in drawn])) / len(drawn)
    assert (frequency[2:] - 0.2).abs().max() < 0.05


def test_a_seed_repeats_the_windows():
    draws = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        draws.append([sample_routing_window(12) for _ in range(20)])
    assert draws[0] == draws[1] != draws[2]


def windows_seen(model, pixel_values, passes):
    """(l, n) of every training forward pass, read from the token counts; None where nothing was routed."""
    model.train()
    seen = []
    for _ in range(passes):
        counts = model(pixel_values).token_counts.tolist()
        queries = model.config.first_query_layer
        patches = [count - 5 - (index >= queries) for index, count in enumerate(counts)]
        routed = [index for index, count in enumerate(patches) if count < 64]
        seen.append((routed[0] - 1, routed[-1]) if routed else None)
    return seen


ROUTING_ONLY = {"train_pruning": "none", "num_hidden_layers": 8, "pruning_layers": [2, 4]}


def test_the_model_routes_in_the_drawn_window(tiny_model, pixel_values):
    seen = windows_seen(tiny_model(**ROUTING_ONLY), pixel_values[:1], 40)
    assert {start for start, _ in seen} == {2, 3, 4}
    assert all(start < end <= 6 for start, end in seen)


@pytest.mark.parametrize("window", [[0, 1], [1, 4], (3, 6)])
def test_a_fixed_window_is_honoured(tiny_model, pixel_values, window):
    seen = windows_seen(tiny_model(**ROUTING_ONLY, routing_window=window), pixel_values[:1], 3)
    assert seen == [tuple(window)] * 3


@pytest.mark.parametrize(("probability", "low", "high"), [(0, 0, 0), (1, 40, 40), (0.5, 8, 32)])
def test_routing_probability(tiny_model, pixel_values, probability, low, high):
    model = tiny_model(**ROUTING_ONLY, routing_probability=probability)
    routed = sum(window is not None for window in windows_seen(model, pixel_values[:1], 40))
    assert low <= routed <= high


def test_evaluation_never_routes(tiny_model, pixel_values):
    model = tiny_model(**ROUTING_ONLY, keep_rates=1.0)
    assert set(model(pixel_values).token_counts.tolist()[:5]) == {69}
    assert torch.equal(model(pixel_values).logits, model(pixel_values).logits)


def test_a_dense_model_does_not_route(tiny_model, pixel_values):
    model = tiny_model(**ROUTING_ONLY)
    model.set_keep_rates(None)
    assert windows_seen(model, pixel_values[:1], 5) == [None] * 5
