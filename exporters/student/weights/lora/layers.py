"""The tensors of a LoRA file, put together by the module that they change, and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.errors import Complaint
from exporters.student.weights.lora.names import split
from exporters.student.weights.weight import Weight

_EXPONENTS: dict[str, tuple[Any, int]] = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
}
"""Where all bits of the exponent are set a number is NaN or infinite: told from the bytes, several times as fast as by value."""


@dataclass(frozen=True)
class Layer:
    """What a LoRA does to one module.

    Attributes:
        module: as the file names it.
        down: ``A``, ``[rank, inputs, ...]``.
        up: ``B``, ``[outputs, rank, ...]``.
        alpha: the module's own; none where the file has none for it.
        magnitude: DoRA's lengths of rows.
        bias: that is added to the module's.
    """

    module: str
    down: Weight
    up: Weight
    alpha: float | None = None
    magnitude: Weight | None = None
    bias: Weight | None = None

    @property
    def rank(self) -> int:
        """Of the product."""
        return self.down.shape[0]


def read_layers(tensors: Mapping[str, Weight]) -> tuple[list[Layer], list[Complaint]]:
    """Every layer of a file, and what is wrong with its tensors.

    Args:
        tensors: by their names in the file; none is read but alphas, and for NaN.
    """
    parts: dict[str, dict[str, tuple[str, Weight]]] = {}
    complaints = []
    for name, weight in tensors.items():
        if (which := split(name)) is None:
            complaints.append(Complaint(name, "is no part of a LoRA", "halves, alphas and magnitudes only", _size(weight)))
            continue
        module, part = which
        if part in parts.setdefault(module, {}):
            got = f"as {parts[module][part][0]} and {name}"
            complaints.append(Complaint(module, f"has two tensors for {part}", "one adapter in a file", got))
        parts[module][part] = (name, weight)
        complaints += _check_numbers(name, weight)
    layers = []
    for module, its in parts.items():
        weights = {part: weight for part, (_, weight) in its.items()}
        wrong = _check_halves(module, weights) or _check_alpha(module, weights.get("alpha"))
        complaints += wrong
        if not wrong:
            layers.append(_layer(module, weights))
    return layers, complaints


def _layer(module: str, weights: Mapping[str, Weight]) -> Layer:
    alpha = weights.get("alpha")
    number = None if alpha is None else float(alpha.load().reshape(-1)[0])
    return Layer(module, weights["down"], weights["up"], number, weights.get("magnitude"), weights.get("bias"))


def _check_halves(module: str, weights: Mapping[str, Weight]) -> list[Complaint]:
    down, up = weights.get("down"), weights.get("up")
    if down is None or up is None:
        there = "A (down)" if up is None else "B (up)"
        missing = "B (up)" if up is None else "A (down)"
        if down is None and up is None:
            return [Complaint(module, f"has {' and '.join(sorted(weights))}, and no halves", "A (down) and B (up)")]
        return [Complaint(module, f"has {there} without {missing}", "both halves")]
    sizes = f"A {_size(down)}, B {_size(up)}"
    if min(len(down.shape), len(up.shape)) < 2 or 0 in (*down.shape, *up.shape):
        return [Complaint(module, "the halves are no matrices", "A [rank, inputs], B [outputs, rank]", sizes)]
    if down.shape[0] != up.shape[1]:
        return [Complaint(module, "the halves have different ranks", "A [rank, inputs], B [outputs, rank]", sizes)]
    if set(up.shape[2:]) - {1}:
        return [Complaint(module, "B spans several pixels, which is not merged", "B [outputs, rank, 1, 1]", sizes)]
    return []


def _check_alpha(module: str, alpha: Weight | None) -> list[Complaint]:
    if alpha is None or alpha.elements == 1:
        return []
    return [Complaint(module, "alpha is wrong", "one number", _size(alpha))]


def _check_numbers(name: str, weight: Weight) -> list[Complaint]:
    if weight.dtype.kind == "i" and not name.endswith(".alpha"):
        return [Complaint(name, "is stored as integers", "floating point", str(weight.dtype))]
    return [] if _finite(weight) else [Complaint(name, "holds NaN or infinity", "finite numbers")]


def _finite(weight: Weight) -> bool:
    values = weight.load()
    if values.dtype.kind == "i":
        return True
    if values.dtype.name not in _EXPONENTS:
        return bool(np.isfinite(values).all())
    kind, exponent = _EXPONENTS[values.dtype.name]
    bits = values.reshape(-1).view(kind)
    return not bool(((bits & exponent) == exponent).any())


def _size(weight: Weight) -> str:
    return str(list(weight.shape))
