"""What a graph costs: arithmetic and bytes of every operator, counted from shapes alone. No weight is read.

A multiply-add is two FLOPs, as vendors count their peaks. Everything else that is computed counts one FLOP for each elementary
operation and element, a transcendental function being one operation. Bytes are what an operator reads and writes if nothing of
it stays in a cache: its weights as they are held at run time, its inputs, its outputs. Runtimes fuse operators and keep small
values in caches, so bytes of activations are an upper bound, and so are times that are predicted from them
(:mod:`benchmarks.forecast.roofline`).

An operator that no counter knows, or whose shapes are not known, is kept with its reason and counts nothing.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Group = Literal["product", "attention", "convolution", "elementwise", "movement", "view", "uncounted", "several"]
"""What kind of work an operator is; operators of one group run alike. Views (reshapes) move nothing."""

Arithmetic = Literal["fp32", "fp16", "w8a8", "blocks8", "blocks4", "integer"]
"""What is multiplied: floating point; int8 by int8; weights in blocks of 8 or at most 4 bits, which a runtime multiplies in
int8 or in floating point; integers of shapes and token ids."""


@dataclass(frozen=True)
class Work:
    """What one operator does.

    Attributes:
        group: the kind of work.
        multiply_adds: of products, attention and convolutions.
        other_flops: elementary operations beside those.
        weight_bytes: of constants that it reads, as they are held at run time.
        activation_bytes: of all other inputs and outputs.
    """

    group: Group
    multiply_adds: int = 0
    other_flops: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0

    @property
    def flops(self) -> int:
        """A multiply-add is two."""
        return 2 * self.multiply_adds + self.other_flops


@dataclass(frozen=True)
class Operator:
    """One operator of a graph.

    Attributes:
        kind: as its format names it.
        name: of its node.
        work: what it does.
        arithmetic: what it multiplies.
        dtype: type of its result: where a processor lacks ``arithmetic``, what it computes in.
        uncounted: why it is not counted; empty where it is.
    """

    kind: str
    name: str
    work: Work
    arithmetic: Arithmetic
    dtype: Arithmetic
    uncounted: str = ""


@dataclass(frozen=True)
class GraphCost:
    """The operators of a graph, in its order.

    Attributes:
        name: of the graph.
        operators: all that run; what depends on constants only is computed when a graph is loaded, and is not among them.
    """

    name: str
    operators: tuple[Operator, ...] = field(repr=False)

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of all operators."""
        return sum(operator.work.multiply_adds for operator in self.operators)

    @property
    def flops(self) -> int:
        """The FLOPs of all operators; a multiply-add is two."""
        return sum(operator.work.flops for operator in self.operators)

    @property
    def weight_bytes(self) -> int:
        """Read in one run; a table that is looked up counts the rows that are read."""
        return sum(operator.work.weight_bytes for operator in self.operators)

    @property
    def activation_bytes(self) -> int:
        """Read and written in one run, if nothing stays in a cache."""
        return sum(operator.work.activation_bytes for operator in self.operators)

    @property
    def uncounted(self) -> dict[str, int]:
        """How many operators count nothing, by kind and reason."""
        return dict(
            collections.Counter(f"{operator.kind}: {operator.uncounted}" for operator in self.operators if operator.uncounted)
        )

    def by_kind(self) -> dict[str, tuple[int, Work]]:
        """How many operators of each kind there are, and what they do together; most arithmetic first."""
        grouped: dict[str, list[Work]] = {}
        for operator in self.operators:
            grouped.setdefault(operator.kind, []).append(operator.work)
        totals = {kind: (len(works), total(works)) for kind, works in grouped.items()}
        return dict(sorted(totals.items(), key=lambda item: -item[1][1].flops))


def total(works: Iterable[Work]) -> Work:
    """Several operators' work as one."""
    works = list(works)
    groups = {work.group for work in works}
    return Work(
        works[0].group if len(groups) == 1 else "several",
        sum(work.multiply_adds for work in works),
        sum(work.other_flops for work in works),
        sum(work.weight_bytes for work in works),
        sum(work.activation_bytes for work in works),
    )


# Elementary operations for each element of the result, by what is computed; formats map their own names to these.
PER_ELEMENT: Mapping[str, int] = {
    "one": 1,  # add, multiply, compare, round, exponentiate, ...
    "select": 0,  # chooses, computes nothing
    "sigmoid": 3,  # exp, add, divide
    "silu": 4,  # and a product
    "gelu": 4,  # scale, erf or tanh, add, multiply
    "softmax": 5,  # maximum, subtract, exp, sum, divide
    "layer norm": 7,  # sum, subtract, square, sum, scale, weight, bias
    "rms norm": 4,  # square, sum, scale, weight
    "quantize": 5,  # minimum, maximum, divide, round, clip
    "dequantize": 2,  # subtract, scale
}
