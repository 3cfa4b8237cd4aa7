"""What each operation gave: how large, and where the first value that is no number came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exporters.coreml.evaluate.program import Operation


@dataclass(frozen=True)
class Record:
    """One floating result.

    Args:
        kind: the operation, as MIL names it.
        name: the result's name in the program.
        amax: its largest absolute value: infinity if it holds one, NaN if it holds that.
        nonfinite: how many of its values are infinite or NaN.
    """

    kind: str
    name: str
    amax: float
    nonfinite: int


@dataclass
class Audit:
    """Records of an evaluation, in its order. Given to several evaluations it holds them all."""

    records: list[Record] = field(default_factory=list)

    def note(self, operation: Operation, values: Mapping[str, Tensor]) -> None:
        """Take note of an operation's floating results."""
        for name, value in values.items():
            if value.is_floating_point():
                amax = float(value.abs().amax()) if value.numel() else 0.0
                # Only a result whose largest value is no number needs to be counted.
                bad = 0 if amax < float("inf") else int((~torch.isfinite(value)).sum())
                self.records.append(Record(operation.kind, name, amax, bad))

    @property
    def first_nonfinite(self) -> Record | None:
        """The first result that holds infinity or NaN. A mask of minus infinity is one, and is meant to be."""
        return next((record for record in self.records if record.nonfinite), None)

    @property
    def largest(self) -> Record | None:
        """The finite result with the largest value: what stands nearest to fp16's limit of 65504."""
        return max((record for record in self.records if not record.nonfinite), key=lambda record: record.amax, default=None)
