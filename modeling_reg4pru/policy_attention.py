"""Attention under a token policy, through any attention kernel, without a matrix of all pairs of tokens."""

from collections.abc import Callable

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import (
    EomtDinov3Attention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

POLICY_EPSILON = 1e-6


def append_policy_channel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, policy: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Weights proportional to pi_k * exp(q.k) are those of exp(q.k + log pi_k), and q.k + log pi_k = [q, 1].[k, log
    pi_k]: a policy is one more channel of the queries and keys. With it every fused kernel computes the policy-gated
    softmax of DynamicViT (arXiv 2106.02034, Eq. 11) and its gradient with respect to the policy.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch, heads, num_tokens, head_dim)`): As for plain attention.
        policy (`torch.Tensor` of shape `(batch, num_tokens)`): Keep decisions in [0, 1].
        scaling (`float`): The factor by which the kernel multiplies q.k.

    Returns:
        The three tensors with `head_dim + 1` channels, padded to a multiple of 8. Values are padded as well, as fused
        kernels want one width; their extra channels are zero.
    """
    batch_size, num_heads, num_queries, head_dim = query.shape
    num_keys = key.shape[2]
    padding = -(-(head_dim + 1) // 8) * 8 - head_dim - 1
    log_policy = (policy.float() + POLICY_EPSILON).log() / scaling
    log_policy = log_policy.to(key.dtype)[:, None, :, None].expand(batch_size, num_heads, num_keys, 1)
    one = query.new_ones(batch_size, num_heads, num_queries, 1)
    query = torch.nn.functional.pad(torch.cat((query, one), dim=-1), (0, padding))
    key = torch.nn.functional.pad(torch.cat((key, log_policy), dim=-1), (0, padding))
    value = torch.nn.functional.pad(value, (0, padding + 1))
    return query, key, value


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
    head_dim = value.shape[-1]
    if policy is not None:
        query, key, value = append_policy_channel(query, key, value, policy, module.scaling)
    if query_mask is None:
        output, weights = attention_interface(module, query, key, value, None, scaling=module.scaling, **kwargs)
        return output[..., :head_dim], weights

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
    output = torch.cat((masked[0], free[0]), dim=1)[..., :head_dim]
    weights = None if free[1] is None else torch.cat((masked[1], free[1]), dim=2)
    return output, weights


class Reg4PruAttention(EomtDinov3Attention):
    """
    [`EomtDinov3Attention`] with two more inputs, the policy over the tokens and the mask of the query tokens.

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
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        # (batch, num_tokens, hidden) -> (batch, heads, num_tokens, head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)

        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = policy_attention(
            attention_interface,
            self,
            query,
            key,
            value,
            policy,
            query_mask,
            dropout=self.dropout if self.training else 0.0,
            **kwargs,
        )
        return self.o_proj(output.reshape(hidden_states.shape)), weights
