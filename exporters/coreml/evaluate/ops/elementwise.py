"""Arithmetic, comparisons, activations, casts: one result for each element, with numpy's broadcasting.

Definitions: ``iOS15/elementwise_unary.py``, ``elementwise_binary.py``, ``activation.py`` and ``iOS17`` of coremltools' ``defs``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.coreml.evaluate.dtypes import BY_NAME


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def operator(x: Tensor) -> Tensor:
        return function(x)

    return operator


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def operator(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return operator


def _cast(x: Tensor, dtype: str) -> Tensor:
    """To a type by name; floating values lose their fraction, as in C, and must fit."""
    target = BY_NAME.get(dtype)
    if target is None or target.kind == "string":
        raise ValueError(f"cast to {dtype} is not defined")
    if target.kind == "float":
        return x.float()
    if target.kind == "bool":
        return x != 0
    if not x.is_floating_point():
        return x.to(torch.int64)
    whole = x.double().trunc()  # 32-bit integers are exact in fp64, and not in fp32
    if not bool(((whole >= target.lowest) & (whole <= target.highest)).all()):
        raise ValueError(f"a value does not fit {dtype}: what a device makes of it is not defined")
    return whole.to(torch.int64)


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    match mode:
        case "EXACT":
            return F.gelu(x)
        case "TANH_APPROXIMATION":
            return F.gelu(x, approximate="tanh")
        case "SIGMOID_APPROXIMATION":
            return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"gelu has no mode {mode}")


def _clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


def _rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return (x + epsilon).rsqrt()


def _inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return (x + epsilon).reciprocal()


def _log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return (x + epsilon).log()


def _softmax(x: Tensor, axis: int = -1) -> Tensor:
    return x.softmax(axis)


def _leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return F.leaky_relu(x, alpha)


def _select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "cast": _cast,
    "ceil": _unary(torch.ceil),
    "clip": _clip,
    "cos": _unary(torch.cos),
    "equal": _binary(torch.eq),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "floor_div": _binary(torch.floor_divide),
    "gelu": _gelu,
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "identity": _unary(lambda x: x),
    "inverse": _inverse,
    "leaky_relu": _leaky_relu,
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "log": _log,
    "logical_and": _binary(torch.logical_and),
    "logical_not": _unary(torch.logical_not),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mod": _binary(torch.remainder),  # Python's: the sign of the divisor
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pow": _binary(torch.pow),
    "real_div": _binary(torch.true_divide),
    "relu": _unary(F.relu),
    "round": _unary(torch.round),  # halves to even, like numpy
    "rsqrt": _rsqrt,
    "select": _select,
    "sigmoid": _unary(torch.sigmoid),
    "sign": _unary(torch.sign),
    "silu": _unary(F.silu),
    "sin": _unary(torch.sin),
    "softmax": _softmax,
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "sub": _binary(torch.sub),
    "tanh": _unary(torch.tanh),
}
