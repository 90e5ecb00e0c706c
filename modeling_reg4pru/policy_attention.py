"""Attention under a token policy, through any attention kernel, without a matrix of all pairs of tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import (
    EomtDinov3Attention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

POLICY_EPSILON = 1e-6


def append_policy_channels(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, policy: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The attention of DynamicViT (arXiv 2106.02034, Eq. 10 and 11) for any fused kernel: the weight of key k for row i
    is proportional to (pi_k + (1 - pi_k) [i = k]) exp(q_i.k_k), so that a dropped token still attends to itself.

    pi_k exp(q.k) = exp([q, 1].[k, log pi_k]): the policy is one more channel of queries and keys. The self-loop is
    one more key, whose value is zero and whose score for row i is q_i.k_i + log(1 - pi_i): a second channel of the
    queries, in which this key alone holds a 1. A spare channel of the values, 1 for this key alone, brings out its
    weight w_i; [`policy_attention`] adds w_i v_i. No matrix of all pairs is ever made.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch, heads, num_tokens, head_dim)`): As for plain attention.
        policy (`torch.Tensor` of shape `(batch, num_tokens)`): Keep decisions in [0, 1].
        scaling (`float`): The factor by which the kernel multiplies q.k.

    Returns:
        The three tensors with `head_dim + 2` channels, padded to a multiple of 8, and `num_tokens + 1` keys and
        values. Channel `head_dim` of the values is the spare one.
    """
    head_dim = query.shape[-1]
    policy = policy.to(torch.promote_types(policy.dtype, torch.float32))
    log_keep, log_drop = ((share + POLICY_EPSILON).log() / scaling for share in (policy, 1 - policy))
    own_score = (query * key).sum(dim=-1) + log_drop[:, None].to(query.dtype)
    query = torch.cat((query, torch.ones_like(own_score)[..., None], own_score[..., None]), dim=-1)
    log_keep = log_keep.to(key.dtype)[:, None, :, None].expand(*key.shape[:3], 1)
    key = F.pad(torch.cat((key, log_keep), dim=-1), (0, 1, 0, 1))  # one channel and one key more
    key = key + F.pad(key.new_ones(1, 1), (head_dim + 1, 0, key.shape[2] - 1, 0))
    value = F.pad(value, (0, 2, 0, 1))
    value = value + F.pad(value.new_ones(1, 1), (head_dim, 1, value.shape[2] - 1, 0))
    padding = -(head_dim + 2) % 8
    return F.pad(query, (0, padding)), F.pad(key, (0, padding)), F.pad(value, (0, padding))


def policy_attention(
    attention_interface: Callable,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    policy: torch.Tensor | None = None,
    query_mask: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Attention under a policy over the keys and, for the first rows only, a mask.

    Args:
        attention_interface (`Callable`): Any attention function in transformers' form.
        module (`torch.nn.Module`): The attention module, with `scaling`.
        query, key, value (`torch.Tensor` of shape `(batch, heads, num_tokens, head_dim)`): As for plain attention.
        policy (`torch.Tensor` of shape `(batch, num_tokens)`, *optional*): Keep decisions in [0, 1].
        query_mask (`torch.Tensor` of shape `(batch, num_queries, num_tokens)`, *optional*):
            True where one of the leading query tokens may look; the rows after them are free. Only these few rows are
            ever spelled out.

    Returns:
        `tuple`: output `(batch, num_tokens, heads, head_dim)`, and the weights if the interface gives them.
    """
    if policy is None:
        return masked_attention(attention_interface, module, query, key, value, query_mask, **kwargs)
    wide = append_policy_channels(query, key, value, policy, module.scaling)
    if query_mask is not None:  # the self-loop is there for a row that may look at itself
        query_mask = torch.cat((query_mask, query_mask.diagonal(dim1=1, dim2=2)[..., None]), dim=-1)
    output, weights = masked_attention(attention_interface, module, *wide, query_mask, **kwargs)
    head_dim = value.shape[-1]
    self_loop = output[..., head_dim : head_dim + 1]
    if weights is not None:  # shown as what they are: weights of the tokens
        weights = weights[..., :-1] + torch.diag_embed(weights[..., -1])
    return output[..., :head_dim] + self_loop * value.transpose(1, 2), weights


def masked_attention(
    attention_interface: Callable,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_mask: torch.Tensor | None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention whose first rows, those of the query tokens, may have a mask; arguments as in [`policy_attention`]."""
    if query_mask is None:
        return attention_interface(module, query, key, value, None, scaling=module.scaling, **kwargs)
    num_queries = query_mask.shape[1]
    bias = torch.zeros_like(query_mask, dtype=query.dtype).masked_fill(~query_mask, torch.finfo(query.dtype).min)
    # Flash kernels take no mask; the masked rows are few, so they may go through the plain fused kernel.
    masked_interface = attention_interface
    if "flash" in module.config._attn_implementation:
        masked_interface = ALL_ATTENTION_FUNCTIONS["sdpa"]
    masked = masked_interface(
        module, query[:, :, :num_queries], key, value, bias[:, None], scaling=module.scaling, **kwargs
    )
    free = attention_interface(module, query[:, :, num_queries:], key, value, None, scaling=module.scaling, **kwargs)
    weights = None if free[1] is None else torch.cat((masked[1], free[1]), dim=2)
    return torch.cat((masked[0], free[0]), dim=1), weights


def packed_attention(
    attention_interface: Callable,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tile_lengths: list[int],
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Attention within each of several sequences that are packed into one: by FlashAttention's kernel for sequences of
    variable length where that is the implementation, else sequence by sequence, which costs a GPU many small kernels.

    Args:
        attention_interface, module, query, key, value: As in [`policy_attention`], with a batch of 1.
        tile_lengths (`list[int]`): Tokens of each sequence, in their order.

    Returns:
        `tuple`: output `(1, num_tokens, heads, head_dim)`, and `None`: there is no matrix of weights.
    """
    kwargs["scaling"] = module.scaling
    if "flash" in module.config._attn_implementation:
        ends = torch.tensor([0, *tile_lengths], dtype=torch.int32, device=query.device).cumsum(0, dtype=torch.int32)
        for side in "qk":
            kwargs |= {f"cu_seq_lens_{side}": ends, f"max_length_{side}": max(tile_lengths)}
        return attention_interface(module, query, key, value, None, **kwargs)[0], None
    tiles = zip(*(states.split(tile_lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([attention_interface(module, *tile, None, **kwargs)[0] for tile in tiles], dim=1), None


class Reg4PruAttention(EomtDinov3Attention):
    """
    [`EomtDinov3Attention`] with three more inputs: the policy over the tokens, the mask of the query tokens, and the
    lengths of tiles that are packed into one sequence.

    Modifications: transformers' module hands its keyword arguments to whichever attention function the user chose,
    which would silently drop a policy; here the policy is applied around that function, so that it holds for every
    choice.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        policy: torch.Tensor | None = None,
        query_mask: torch.Tensor | None = None,
        tile_lengths: list[int] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        # (batch, num_tokens, hidden) -> (batch, heads, num_tokens, head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if position_embeddings is not None:  # learned positions are in the states already
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)

        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        kwargs["dropout"] = self.dropout if self.training else 0.0
        if tile_lengths is not None:  # at inference, where nothing is hidden by a policy or a mask
            output, weights = packed_attention(attention_interface, self, query, key, value, tile_lengths, **kwargs)
        else:
            output, weights = policy_attention(
                attention_interface, self, query, key, value, policy, query_mask, **kwargs
            )
        return self.o_proj(output.reshape(hidden_states.shape)), weights
