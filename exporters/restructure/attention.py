"""Attention as one operation, and null tokens folded into it.

``flash_deploy::attention`` is opaque to ``torch.export``, so that each exporter chooses what it becomes:
:mod:`exporters.onnx` makes it ``com.microsoft::MultiHeadAttention`` or ``ai.onnx::Attention``, :mod:`exporters.coreml` a
``scaled_dot_product_attention`` or products and softmax.

Null-token folding (exact). Without T5, diffusers appends K all-zero tokens to the text. They carry no position, so all
K are equal at the input; a transformer block is equivariant under permutations of its tokens, so they stay equal after
every block. Attention over scores ``s`` with K equal keys ``n`` and equal values ``v_n`` is::

    sum_i exp(s_i) v_i + K exp(s_n) v_n       sum_i exp(s_i) v_i + exp(s_n + log K) v_n
    -----------------------------------   =   -----------------------------------------
      sum_i exp(s_i)  + K exp(s_n)               sum_i exp(s_i)  + exp(s_n + log K)

so that ONE token with ``log K`` added to its score stands for all of them. An additive bias would make onnxruntime's CPU
kernel leave its flash attention and materialise the S x S scores of every head (``python -m benchmarks.studies.kernels`` has the
time; at 1024 px the scores of SD3.5-Medium are 1.7 GB in fp32). Here ``log K`` enters through two more channels instead:
queries carry a constant there; keys carry zero, but for the null token, whose two entries multiply to ``log K`` (high and
low part, so that fp16 keeps it to 2^-20). Values are untouched; a head grows from 64 to 66 channels for its scores only.

Core ML takes the bias: its attention has a mask anyway, and a head of 66 channels would leave the widths that kernels are made
for. There too ``log K`` has a high and a low part: softmax does not change when one number is added to all scores, so the
null token's score gets the high part, and all others the low part with the opposite sign.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NullForm = Literal["channels", "bias"]
"""How one token stands for many: two more channels of queries and keys, or a bias on the scores."""


@torch.library.custom_op("flash_deploy::attention", mutates_args=())
def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, scale: float, causal: bool
) -> Tensor:
    """Softmax attention over packed heads.

    Args:
        query: ``[batch, queries, num_heads * head_dim]``.
        key: ``[batch, keys, num_heads * head_dim]``.
        value: ``[batch, keys, num_heads * value_dim]``.
        bias: ``[1, num_heads or 1, queries, keys]``, added to the scaled scores; or none.
        num_heads: number of heads.
        scale: factor on the scores.
        causal: whether query i sees keys 0..i only.

    Returns:
        ``[batch, queries, num_heads * value_dim]``.
    """
    return _mix(query, key, value, bias, num_heads, scale, causal)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, scale: float, causal: bool
) -> Tensor:
    """:func:`attention` of a module's own, in one type: fp32 where one of its arguments is, or where the module says so.

    Args:
        module: may have ``wide_attention`` (:func:`exporters.restructure.base.set_precision`) and ``watch_attention``, which is
            told of the arguments (:mod:`exporters.streamed.module`).
        query: as the rest, :func:`attention`'s.
        key: likewise.
        value: likewise.
        bias: likewise.
        num_heads: likewise.
        scale: likewise.
        causal: likewise.
    """
    given = [tensor for tensor in (query, key, value) if tensor.dtype == torch.float32]
    dtype = torch.float32 if given or getattr(module, "wide_attention", False) else query.dtype
    if (watch := getattr(module, "watch_attention", None)) is not None:
        watch(query, key, value, num_heads, scale)
    added = None if bias is None else bias.to(dtype)
    return attention(query.to(dtype), key.to(dtype), value.to(dtype), added, num_heads, scale, causal)


def _mix(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, scale: float, causal: bool) -> Tensor:
    """As kernels do it: scores and their softmax in fp32, whatever the type of what goes in and comes out."""
    dtype = query.dtype

    def split(packed: Tensor) -> Tensor:
        return (
            packed.to(torch.promote_types(dtype, torch.float32)).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        )  # [batch, heads, tokens, dim]

    heads = split(query), split(key), split(value)
    mask = None if bias is None else bias.to(heads[0].dtype)
    mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2).to(dtype).contiguous()


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, num_heads: int, scale: float, causal: bool) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], value.shape[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, bias, *ctx.rest = inputs
    ctx.save_for_backward(query, key, value, bias)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of query, key and value by computing the attention again, this time as torch sees it."""
    query, key, value, bias = ctx.saved_tensors
    with torch.enable_grad():
        query, key, value = (tensor.detach().requires_grad_() for tensor in (query, key, value))
        gradients = torch.autograd.grad(_mix(query, key, value, bias, *ctx.rest), (query, key, value), gradient)
    return (*gradients, None, None, None, None)


attention.register_autograd(_backward, setup_context=_keep)


def null_channels(null_tokens: int, scale: float) -> tuple[float, float, float]:
    """The constants of the two extra channels: ``(query, key_high, key_low)``.

    ``query * (key_high + key_low) * scale = log(null_tokens)``. The query is a power of two near 1/scale and the key is
    split in two, so that in fp16 the sum is off by less than 2^-20.

    >>> query, high, low = null_channels(256, 0.125)
    >>> query * (high + low) * 0.125 - math.log(256) < 1e-6
    True
    """
    query = 2.0 ** round(math.log2(1 / scale))
    key = math.log(null_tokens) / (query * scale)
    high = float(np.float16(key))
    return query, high, key - high


def with_null_channels(query: Tensor, key: Tensor, null_tokens: int, scale: float) -> tuple[Tensor, Tensor]:
    """Give the last key the weight of ``null_tokens`` equal keys.

    Args:
        query: ``[batch, queries, heads, head_dim]``.
        key: ``[batch, keys, heads, head_dim]``, the null token's last.
        null_tokens: how many tokens the last one stands for.
        scale: the factor that the scores will be multiplied by.

    Returns:
        Both with two more channels, ``[batch, tokens, heads, head_dim + 2]``.
    """
    constant_query, high, low = null_channels(null_tokens, scale)
    batch, keys, heads, _ = key.shape

    def full(tokens: int, value: float) -> Tensor:
        return torch.full((batch, tokens, heads, 1), value, dtype=key.dtype, device=key.device)

    null = torch.cat([full(1, high), full(1, low)], dim=-1)
    others = full(keys - 1, 0.0).expand(-1, -1, -1, 2)
    query_channels = full(query.shape[1], constant_query).expand(-1, -1, -1, 2)
    return torch.cat([query, query_channels], dim=-1), torch.cat([key, torch.cat([others, null], dim=1)], dim=-1)


def null_bias(keys: int, null_tokens: int, device: torch.device) -> Tensor:
    """Give the last key the weight of ``null_tokens`` equal keys, as a bias on the scores.

    The high part is a number of fp16, and the low part is less than 2^-8: rounded to fp16 their sum is off by less than 2^-19.

    Returns:
        fp32 ``[1, 1, 1, keys]``.

    >>> bias = null_bias(3, 256, torch.device("cpu")).half().double()
    >>> abs(float(bias[..., -1] - bias[..., 0]) - math.log(256)) < 2**-19
    True
    """
    exact = math.log(null_tokens)
    high = float(np.float16(exact))
    others, null = ((1, 1, 1, keys - 1), high - exact), ((1, 1, 1, 1), high)
    return torch.cat([torch.full(size, value, dtype=torch.float32, device=device) for size, value in (others, null)], dim=-1)
