"""Attention under a policy, against the softmax written out."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import eager_attention_forward

from modeling_reg4pru.policy_attention import (
    POLICY_EPSILON,
    Reg4PruAttention,
    append_policy_channels,
    policy_attention,
)

BATCH, HEADS, TOKENS, HEAD_DIM, QUERIES = 2, 2, 37, 16, 3


@pytest.fixture
def attention(tiny_config):
    config = tiny_config()
    config._attn_implementation = "sdpa"
    return Reg4PruAttention(config)


def interface(name):
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)


def random_inputs(dtype=torch.float32, tokens=TOKENS):
    query, key, value = (torch.randn(BATCH, HEADS, tokens, HEAD_DIM).to(dtype).requires_grad_() for _ in range(3))
    policy = (torch.rand(BATCH, tokens) > 0.5).float()
    policy[0, :4] = torch.tensor([0.3, 1.0, 0.0, 0.7])
    return query, key, value, policy.requires_grad_()


def random_query_mask(tokens=TOKENS):
    mask = torch.rand(BATCH, QUERIES, tokens) > 0.6
    mask[..., 0] = True
    return mask


def explicit_softmax(query, key, value, policy=None, query_mask=None, scaling=HEAD_DIM**-0.5):
    """Equations 10 and 11 of DynamicViT: weights proportional to (pi_k + (1 - pi_k) [i = k]) exp(q_i.k_k)."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    weights = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    if policy is not None:
        itself = torch.eye(policy.shape[1], dtype=policy.dtype)
        gate = (policy + POLICY_EPSILON)[:, None] + (1 - policy + POLICY_EPSILON)[:, None] * itself
        weights = weights * gate[:, None]
    if query_mask is not None:
        allowed = torch.ones_like(scores, dtype=torch.bool)
        allowed[:, :, :QUERIES] = query_mask[:, None]
        weights = weights * allowed
    return torch.einsum("bhqk,bhkd->bqhd", weights / weights.sum(-1, keepdim=True), value)


@pytest.mark.parametrize("masked", [False, True], ids=["free", "query_mask"])
@pytest.mark.parametrize("gated", [False, True], ids=["dense", "policy"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_equals_the_explicit_softmax_in_value_and_gradient(attention, implementation, gated, masked):
    *states, policy = random_inputs()
    inputs = [*states, policy] if gated else states
    query_mask = random_query_mask() if masked else None
    output, _ = policy_attention(interface(implementation), attention, *inputs, query_mask=query_mask)
    expected = explicit_softmax(*inputs, query_mask=query_mask)
    torch.testing.assert_close(output, expected, atol=2e-6, rtol=1e-5)

    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad((output * direction).sum(), inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad((expected * direction).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient / wanted.abs().max(), wanted / wanted.abs().max(), atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_exact_in_double_precision(attention, implementation):
    *states, policy = random_inputs(torch.float64)
    inputs = [*states, policy.detach().double().requires_grad_()]
    output, _ = policy_attention(interface(implementation), attention, *inputs)
    expected = explicit_softmax(*inputs)
    assert (output - expected).abs().max() < 1e-11
    gradients = [torch.autograd.grad(part.square().sum(), inputs) for part in (output, expected)]
    for gradient, wanted in zip(*gradients, strict=True):
        assert (gradient - wanted).abs().max() < 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bfloat16_stays_near_float32(attention, implementation):
    *states, policy = random_inputs(torch.bfloat16)
    query_mask = random_query_mask()
    output, _ = policy_attention(interface(implementation), attention, *states, policy, query_mask)
    expected = explicit_softmax(*(state.float() for state in states), policy, query_mask)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).abs().max() < 0.05
    output.float().square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (*states, policy))


def test_dropped_tokens_have_no_influence(attention):
    query, key, value, _ = random_inputs()
    policy = torch.ones(BATCH, TOKENS)
    policy[:, 10:20] = 0
    before, _ = policy_attention(interface("sdpa"), attention, query, key, value, policy)
    moved_key, moved_value = key.detach().clone(), value.detach().clone()
    moved_key[:, :, 10:20], moved_value[:, :, 10:20] = 1.0, 100.0
    after, _ = policy_attention(interface("sdpa"), attention, query, moved_key, moved_value, policy)
    others = [token for token in range(TOKENS) if not 10 <= token < 20]
    assert (after - before)[:, others].abs().max() < 5e-3  # ten tokens of value 100 with 1e-6 of the weight
    assert (after - before)[:, 10:20].abs().max() > 1  # but each of them attends to itself
    policy[:, 10:20] = 1
    shown, _ = policy_attention(interface("sdpa"), attention, query, moved_key, moved_value, policy)
    assert (shown - before)[:, others].abs().max() > 1


def test_a_policy_of_ones_changes_nothing(attention):
    query, key, value, _ = random_inputs()
    gated, _ = policy_attention(interface("sdpa"), attention, query, key, value, torch.ones(BATCH, TOKENS))
    free, _ = policy_attention(interface("sdpa"), attention, query, key, value)
    torch.testing.assert_close(gated, free, atol=5e-6, rtol=1e-5)  # a millionth is left of the self-loop


@pytest.mark.parametrize("head_dim", [7, 8, 16, 64])
def test_channels_are_padded_to_a_multiple_of_8(head_dim):
    states = [torch.randn(1, 2, 5, head_dim) for _ in range(3)]
    widened = append_policy_channels(*states, torch.ones(1, 5), scaling=1.0)
    assert {tensor.shape[-1] for tensor in widened} == {-(-(head_dim + 2) // 8) * 8}


def test_eager_gives_weights_that_sum_to_one(attention):
    *states, policy = random_inputs()
    _, weights = policy_attention(interface("eager"), attention, *states, policy, random_query_mask())
    assert weights.shape == (BATCH, HEADS, TOKENS, TOKENS)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, TOKENS))


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operator, forward or backward, returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize(("implementation", "spelled_out"), [("sdpa", False), ("eager", True)])
def test_no_matrix_of_all_pairs_of_tokens(attention, implementation, spelled_out):
    tokens = 1024
    *states, policy = random_inputs(tokens=tokens)
    with LargestTensor() as largest:
        output, _ = policy_attention(interface(implementation), attention, *states, policy, random_query_mask(tokens))
        output.sum().backward()
    assert (largest.numel >= tokens * tokens) == spelled_out


def test_the_module_applies_rotary_positions_policy_and_mask(attention):
    hidden, policy, query_mask = torch.randn(BATCH, TOKENS, 32), torch.rand(BATCH, TOKENS), random_query_mask()
    angles = torch.randn(TOKENS - 5, HEAD_DIM // 2).tile(2)
    output, _ = attention(hidden, None, (angles.cos(), angles.sin()), policy, query_mask)

    def heads(projection):
        return projection(hidden).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)

    def rotate(states):
        real, imaginary = states[:, :, 5:].chunk(2, dim=-1)
        phase = torch.polar(torch.ones(1), angles[:, : HEAD_DIM // 2])
        turned = torch.complex(real, imaginary) * phase
        return torch.cat((states[:, :, :5], torch.cat((turned.real, turned.imag), dim=-1)), dim=2)

    expected = explicit_softmax(
        rotate(heads(attention.q_proj)), rotate(heads(attention.k_proj)), heads(attention.v_proj), policy, query_mask
    )
    torch.testing.assert_close(output, attention.o_proj(expected.flatten(2)), atol=1e-5, rtol=1e-4)
