"""All operations that are evaluated, by MIL's names, and how a program's arguments become a function's.

An operation is a plain function with MIL's parameter names and defaults, from coremltools' definitions
(``converters/mil/mil/ops/defs``). Its annotations say what it wants of each argument: ``Tensor`` (floating values come in 32
bits), ``list[Tensor]``, or Python's own numbers, strings and tuples. A parameter ``opset`` is not the program's: it asks for the
number of the opset, where the definition changed between releases.

Torch computes. On two x86 cores it is as fast as numpy at a matrix product (1178 x 1536 x 6144: 0.11 s, numpy 0.09 s), 2.5 to 3.3
times faster at the VAE decoder's convolutions (256 channels of 256 x 256, 3 x 3: 0.21 s, numpy 0.52 s as nine products) and 13
times faster at rounding to 16 bits, which the evaluation does after every operation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporters.coreml.evaluate.ops.elementwise import ELEMENTWISE
from exporters.coreml.evaluate.ops.indexing import INDEXING
from exporters.coreml.evaluate.ops.products import PRODUCTS
from exporters.coreml.evaluate.ops.reductions import REDUCTIONS
from exporters.coreml.evaluate.ops.resizing import RESIZING
from exporters.coreml.evaluate.ops.shapes import SHAPES
from exporters.coreml.evaluate.program import Operation
from exporters.errors import Complaint, ExportError

Operator = Callable[..., Tensor | tuple[Tensor, ...]]
Value = Tensor | str

OPERATORS: dict[str, Operator] = {**ELEMENTWISE, **INDEXING, **PRODUCTS, **REDUCTIONS, **RESIZING, **SHAPES}


def _tensor(value: Value) -> Tensor:
    if isinstance(value, str):
        raise TypeError(f"expected a tensor, got {value!r}")
    return value.float() if value.is_floating_point() else value


def _scalar(value: Value) -> Any:
    if isinstance(value, str) or value.numel() != 1:
        raise TypeError(f"expected one number, got {value if isinstance(value, str) else list(value.shape)}")
    return value.item()


def _string(value: Value) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a string, got a tensor")
    return value


def _tuple(value: Value) -> tuple[Any, ...]:
    return tuple(_tensor(value).flatten().tolist())


_CONVERSIONS: dict[str, Callable[[Value], Any]] = {
    "Tensor": _tensor,
    "int": lambda value: int(_scalar(value)),
    "float": lambda value: float(_scalar(value)),
    "bool": lambda value: bool(_scalar(value)),
    "str": _string,
    "tuple[int, ...]": _tuple,
    "tuple[bool, ...]": _tuple,
}


@cache
def parameters(kind: str) -> dict[str, inspect.Parameter]:
    """The parameters that a program may give to operations of this kind."""
    signature = inspect.signature(OPERATORS[kind]).parameters
    return {name: parameter for name, parameter in signature.items() if name != "opset"}


def apply(operation: Operation, values: Mapping[str, list[Value]], opset: int) -> tuple[Tensor, ...]:
    """Compute one operation.

    Args:
        operation: the operation.
        values: what is bound to each of its parameters, as it is held.
        opset: the program's.

    Returns:
        What it gives, floating values in 32 bits, not yet rounded.

    Raises:
        ExportError: the arguments do not fit the operation's definition.
    """
    function = OPERATORS[operation.kind]
    try:
        arguments = {name: _convert(bound, parameters(operation.kind)[name].annotation) for name, bound in values.items()}
        if "opset" in inspect.signature(function).parameters:
            arguments["opset"] = opset
        results = function(**arguments)
    # Torch and Python raise these when shapes, axes, types or sizes do not go together.
    except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        complaint = Complaint(str(operation), next(iter(str(error).splitlines()), type(error).__name__))
        raise ExportError("An operation cannot be evaluated.", [complaint]) from error
    return results if isinstance(results, tuple) else (results,)


def _convert(bound: list[Value], annotation: str) -> Any:
    if annotation == "list[Tensor]":
        return [_tensor(value) for value in bound]
    return _CONVERSIONS[annotation.removesuffix(" | None")](bound[0])


def to_torch(array: np.ndarray) -> Value:
    """A constant or an input for torch: a copy of its own, integers widened to what torch computes in, strings as they are.

    Unsigned integers of 16 and 32 bits have few operations in torch; int32 and int64 hold them.
    """
    if array.dtype == np.object_:
        return str(array.item())
    if array.dtype.kind in "iu":
        return torch.from_numpy(array.astype(np.int64 if array.dtype.itemsize == 8 or array.dtype == np.uint32 else np.int32))
    return torch.from_numpy(np.array(array))
