"""Weights with LoRAs in them: ``W + s * B @ A``, computed when a weight is read, one at a time.

A merged weight is fp32 whatever it was stored as. Rounded back to bfloat16, whose numbers have 8 bits, it would lose most of
what a LoRA adds: a change of a thousandth of a weight is a quarter of a step there. Whoever stores it (a scheme's codes, fp16)
rounds it once, from the sum itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from exporters.student.weights.weight import Weight

_PIECE_ELEMENTS = 1 << 24  # of the product that is in memory beside the sum: 64 MiB


class Change(Protocol):
    """What a LoRA does to a tensor."""

    def apply(self, rows: np.ndarray) -> None:
        """Change it in place; it is fp32, ``[outputs, everything else]``."""


@dataclass(frozen=True)
class Product:
    """A LoRA's, or a DoRA's, part of a matrix or a convolution.

    ``W' = W + s * B @ A``; DoRA sets the length of each row besides: ``W' * m / |W'|`` (2402.09353, as PEFT merges it).

    Attributes:
        down: ``A``, ``[rank, inputs]``, of convolutions ``[rank, inputs, height, width]``.
        up: ``B``, ``[rows of the source, rank]`` or ``[rows of the source, rank, 1, 1]``.
        rows: ranges of the source's rows that are this tensor's, one after another.
        scaling: ``s``.
        magnitude: ``m`` for each row of the source, if it is a DoRA.
    """

    down: Weight
    up: Weight
    rows: tuple[tuple[int, int], ...]
    scaling: float
    magnitude: Weight | None = None

    def apply(self, rows: np.ndarray) -> None:
        rank = self.down.shape[0]
        down = self.down.load().reshape(rank, -1).astype(np.float32)
        up = _rows(self.up.load().reshape(-1, rank), self.rows)
        magnitude = None if self.magnitude is None else _rows(self.magnitude.load().reshape(-1), self.rows)
        step = max(1, _PIECE_ELEMENTS // rows.shape[1])
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            product = up[start : start + step] @ down
            product *= np.float32(self.scaling)
            part += product
            if magnitude is not None:
                lengths = np.linalg.norm(part, axis=1)
                wanted = magnitude[start : start + step]
                part *= np.divide(wanted, lengths, out=np.zeros_like(lengths), where=lengths > 0)[:, None]


@dataclass(frozen=True)
class Addend:
    """A LoRA's part of a bias: ``b' = b + s * c``.

    Attributes:
        bias: ``c``, for each row of the source.
        rows: as :class:`Product` has them.
        scaling: ``s``.
    """

    bias: Weight
    rows: tuple[tuple[int, int], ...]
    scaling: float

    def apply(self, rows: np.ndarray) -> None:
        rows += np.float32(self.scaling) * _rows(self.bias.load().reshape(-1, 1), self.rows)


def merged(weight: Weight, changes: Sequence[Change]) -> Weight:
    """A weight with changes made to it in their order each time that it is read; nothing is kept."""
    origin = f"{weight.origin} (LoRA merged)"
    return replace(weight, dtype=np.dtype(np.float32), load=partial(_load, weight, tuple(changes)), origin=origin)


def _load(weight: Weight, changes: tuple[Change, ...]) -> np.ndarray:
    values = np.array(weight.load(), np.float32, order="C")  # a copy: what is loaded may be a view of the file
    for change in changes:
        change.apply(values.reshape(len(values), -1))
    return values


def _rows(values: np.ndarray, ranges: tuple[tuple[int, int], ...]) -> np.ndarray:
    rows: np.ndarray = np.concatenate([values[start:end] for start, end in ranges]).astype(np.float32)
    return rows
