"""The program in 16 bits beside itself in 32: which operation first loses what.

Each value's error is its 16-bit evaluation against its 32-bit one, as a signal-to-noise ratio. An operation is to blame if its
result is much worse than the worst of its arguments: sums that cancel, squares that overflow, small numbers that vanish. A result
that is merely made of bad arguments is not. Rounding to 16 bits by itself costs a relative 2^-11 at most, so arguments that are
better than that bound, 66.2 dB, count as no better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exporters.coreml.evaluate.program import Operation, Program
from exporters.coreml.evaluate.run import Run

ROUNDING_DB = 20 * math.log10(2**11)
DEFAULT_DROP_DB = 20.0


@dataclass(frozen=True)
class Finding:
    """An operation that lost something.

    Args:
        kind: the operation, as MIL names it.
        name: its result's name in the program.
        nonfinite: values that are infinite or NaN in 16 bits and finite in 32.
        before_db: the worst argument's ratio, at most :data:`ROUNDING_DB`.
        after_db: the result's ratio; minus infinity if ``nonfinite``.
    """

    kind: str
    name: str
    nonfinite: int
    before_db: float
    after_db: float

    def __str__(self) -> str:
        lost = f", {self.nonfinite} values are no longer finite" if self.nonfinite else ""
        return f"{self.kind} {self.name!r}: {self.before_db:.1f} dB before, {self.after_db:.1f} dB after{lost}"


@dataclass(frozen=True)
class Comparison:
    """What 16 bits cost a program.

    Args:
        outputs_db: each output's ratio.
        findings: the operations to blame, in the program's order.
    """

    outputs_db: Mapping[str, float]
    findings: tuple[Finding, ...]

    @property
    def first(self) -> Finding | None:
        """Where the trouble begins, if there is any."""
        return self.findings[0] if self.findings else None


def compare(program: Program, inputs: Mapping[str, np.ndarray], drop_db: float = DEFAULT_DROP_DB) -> Comparison:
    """Evaluate the program in ``fp32`` and ``fp16`` side by side.

    Args:
        program: the program.
        inputs: as for :func:`~exporters.coreml.evaluate.run.evaluate`.
        drop_db: how much worse than its worst argument a result may be.

    Raises:
        ExportError: as :func:`~exporters.coreml.evaluate.run.evaluate`.
    """
    exact, rounded = Run(program, inputs, "fp32"), Run(program, inputs, "fp16")
    ratios: dict[str, float] = {}
    findings = []
    for wide, narrow in zip(exact, rounded, strict=True):
        before = min([ROUNDING_DB, *(ratios.get(name, ROUNDING_DB) for name in _arguments(wide.operation))])
        for name, reference in wide.values.items():
            ratios[name], lost = _ratio(reference, narrow.values[name])
            # Of arguments that are lost already (minus infinity) nothing worse can be made, and no one is blamed.
            if before - ratios[name] > drop_db:
                findings.append(Finding(wide.operation.kind, name, lost, before, ratios[name]))
    return Comparison({port.name: ratios.get(port.name, math.inf) for port in program.outputs}, tuple(findings))


def _arguments(operation: Operation) -> list[str]:
    return [name for bound in operation.arguments.values() for name in bound if isinstance(name, str)]


def _ratio(reference: Tensor, got: Tensor) -> tuple[float, int]:
    """``10 log10(sum(reference^2) / sum((reference - got)^2))`` in dB, and how many values only ``got`` has lost.

    Where both hold the same infinity, or NaN, there is nothing to compare.
    """
    wide, other = reference.double(), got.double()
    finite = torch.isfinite(wide)
    lost = int((finite & ~torch.isfinite(other)).sum())
    if lost:
        return -math.inf, lost
    error = torch.where(finite | (wide != other) & ~(wide.isnan() & other.isnan()), wide - other, 0.0)
    signal, noise = float(torch.where(finite, wide, 0.0).square().sum()), float(error.square().sum())
    if noise == 0:
        return math.inf, 0
    if signal == 0 or not math.isfinite(noise):
        return -math.inf, 0
    return 10 * math.log10(signal / noise), 0
