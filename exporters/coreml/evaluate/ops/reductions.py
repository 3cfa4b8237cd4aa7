"""Sums and their kin over axes, and the normalisations made of them. Everything is summed in 32 bits.

Definitions: ``iOS15/reduction.py``, ``iOS15/normalization.py``, ``iOS17`` of coremltools' ``defs``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _over(reduce: Reduction) -> Callable[..., Tensor]:
    def operator(x: Tensor, axes: tuple[int, ...] | None = None, keep_dims: bool = False) -> Tensor:
        return reduce(x, tuple(range(x.ndim)) if axes is None else axes, keep_dims)

    return operator


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """The first of equals: the definition leaves it open, torch's CPU promises it."""
    return x.argmax(axis, keepdim=keep_dims)


def _argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmin(axis, keepdim=keep_dims)


def _centred(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    """``(x - mean) / sqrt(variance + epsilon)`` over ``axes``."""
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * (variance + epsilon).rsqrt()


def _scaled(x: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: list[int]) -> Tensor:
    x = x if gamma is None else x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def _layer_norm(
    x: Tensor,
    axes: tuple[int, ...] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Over any axes; ``gamma`` and ``beta`` have the sizes of those axes."""
    over = {axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)}
    return _scaled(_centred(x, tuple(over), epsilon), gamma, beta, [n if i in over else 1 for i, n in enumerate(x.shape)])


def _instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """``x [n, channels, *sizes]``, over the sizes."""
    return _scaled(_centred(x, tuple(range(2, x.ndim)), epsilon), gamma, beta, [-1] + [1] * (x.ndim - 2))


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """``x [n, channels, *sizes]`` with given statistics of each channel."""
    shape = [-1] + [1] * (x.ndim - 2)
    return _scaled((x - mean.reshape(shape)) * (variance + epsilon).rsqrt().reshape(shape), gamma, beta, shape)


def _l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """``x / sqrt(sum(x^2) + epsilon)`` over the last three axes."""
    return x * (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).rsqrt()


def _cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis)
    total = total - x if exclusive and not x.is_floating_point() else total
    if exclusive and x.is_floating_point():  # shifted: to subtract would cancel
        total = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "batch_norm": _batch_norm,
    "cumsum": _cumsum,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "reduce_argmax": _argmax,
    "reduce_argmin": _argmin,
    "reduce_l1_norm": _over(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "reduce_l2_norm": _over(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "reduce_log_sum": _over(lambda x, axes, keep: x.sum(axes, keep).log()),
    "reduce_log_sum_exp": _over(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "reduce_max": _over(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_mean": _over(lambda x, axes, keep: x.mean(axes, keep)),
    "reduce_min": _over(lambda x, axes, keep: x.amin(axes, keep)),
    "reduce_prod": _over(_product),
    "reduce_sum": _over(lambda x, axes, keep: x.sum(axes, keep)),
    "reduce_sum_square": _over(lambda x, axes, keep: x.square().sum(axes, keep)),
}
