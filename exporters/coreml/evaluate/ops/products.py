"""Matrix products, convolutions, attention.

Definitions: ``iOS15/linear.py``, ``iOS15/conv.py``, ``iOS18/transformers.py`` of coremltools' ``defs``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., in]``, ``weight [out, in]``."""
    return F.linear(x, weight, bias)


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Batched; a transposition swaps the last two axes and leaves a vector alone."""
    x = x.mT if transpose_x and x.ndim > 1 else x
    y = y.mT if transpose_y and y.ndim > 1 else y
    return x @ y


def _einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, values)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """``softmax(query key^T / sqrt(E) + mask) value`` for ``[..., tokens, E]``; a boolean mask says what takes part.

    One matrix of scores at a time: all heads of a large picture would take gigabytes. Not torch's own fused function, which gives
    zeros where a row is masked altogether: MIL's definition gives NaN.
    """
    batch = query.shape[:-2]
    bias = None
    if attn_mask is not None:
        bias = attn_mask if attn_mask.is_floating_point() else torch.zeros(()).masked_fill(~attn_mask, -math.inf)
        bias = bias.expand(*batch, query.shape[-2], key.shape[-2])
    result = query.new_empty(*query.shape[:-1], value.shape[-1])
    for i in itertools.product(*map(range, batch)):
        scores = query[i] @ key[i].T / math.sqrt(query.shape[-1])
        if bias is not None:
            scores += bias[i]
        result[i] = scores.softmax(-1) @ value[i]
    return result


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: tuple[int, ...] | None = None,
    pad_type: str = "valid",
    pad: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    groups: int = 1,
) -> Tensor:
    """``x [n, in, *sizes]``, ``weight [out, in / groups, *kernel]``; ``pad`` is (before, after) for each axis."""
    sizes, rank = x.shape[2:], x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    reach = [(kernel - 1) * dilation + 1 for kernel, dilation in zip(weight.shape[2:], dilations, strict=True)]
    before, after = _padding(pad_type, pad, sizes, reach, strides)
    if before != after:
        x = F.pad(x, [n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair])
        before = [0] * rank
    return _CONV[rank](x, weight, bias, strides, before, dilations, groups)


def _padding(
    kind: str, pad: tuple[int, ...] | None, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each axis; ``same`` gives ``ceil(size / stride)`` results, the odd element after (or before)."""
    if kind == "custom" and pad is not None:
        return list(pad[::2]), list(pad[1::2])
    if kind not in {"valid", "same", "same_lower"}:
        raise ValueError(f"pad_type {kind} is not defined" if kind != "custom" else "pad_type custom needs pad")
    if kind == "valid":
        return [0] * len(sizes), [0] * len(sizes)
    missing = [max(0, s * (math.ceil(n / s) - 1) + k - n) for n, k, s in zip(sizes, reach, strides, strict=True)]
    less, more = [n // 2 for n in missing], [n - n // 2 for n in missing]
    return (less, more) if kind == "same" else (more, less)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: tuple[int, ...] | None = None,
    output_shape: tuple[int, ...] | None = None,
    pad_type: str = "valid",
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    groups: int = 1,
) -> Tensor:
    """``x [n, in, *sizes]``, ``weight [in, out / groups, *kernel]``.

    The whole product of ``(size - 1) stride + (kernel - 1) dilation + 1`` elements is cut to what padding or ``output_shape``
    leave of it; where they ask for more, nothing is added up there.
    """
    rank, sizes = x.ndim - 2, x.shape[2:]
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    whole = _CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, groups, dilations)
    begin, lengths = [0] * rank, list(whole.shape[2:])
    if pad_type == "custom":
        begin, end = _padding(pad_type, pad, sizes, sizes, strides)
        lengths = [n - b - e for n, b, e in zip(lengths, begin, end, strict=True)]
    elif pad_type == "same":
        lengths = [n * s for n, s in zip(sizes, strides, strict=True)]
        begin = [max(0, n - k) // 2 for n, k in zip(whole.shape[2:], lengths, strict=True)]
    elif pad_type != "valid":
        raise ValueError(f"pad_type {pad_type} is not defined")
    lengths = list(output_shape[2:]) if output_shape is not None else lengths
    cut = [n for b, k, size in zip(begin, lengths, whole.shape[2:], strict=True) for n in (b + k - size, -b)]
    result = F.pad(whole, cut[::-1])  # negative padding cuts
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "einsum": _einsum,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}
