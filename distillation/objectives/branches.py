"""Split-timestep fine-tuning: a student trained on in copies, each on its own levels, then merged into one again.

SD3.5-Flash duplicates the student, trains a branch on each of two disjoint ranges of levels, holds each close to where it began
by an exponential moving average (the anchor), and merges the weights at a ratio that is chosen by score. What the paper leaves
open (which branch gets the larger share, whether the ends were candidates) is measured here: 0 and 1 are candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distillation.levels import segments

__all__ = ["merge", "owner", "update_average"]


def owner(levels: Sequence[float], boundary: float) -> list[int]:
    """Which branch trains each step: 0 the low levels (at or below the boundary), 1 the high ones, by the level before the step.

    >>> owner((1, .9, .75, .5, 0), .75)
    [1, 1, 0, 0]
    """
    return [int(before > boundary) for before, _ in segments(levels)]


def merge(low: Mapping[str, Tensor], high: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """Weights between two branches: ``(1 - ratio) low + ratio high``; bit for bit one of them at 0 and 1.

    Raises:
        ValueError: the branches hold different tensors, or the ratio is outside [0, 1].
    """
    if low.keys() != high.keys() or not 0 <= ratio <= 1:
        raise ValueError(f"branches of one student are merged at a ratio in [0, 1], got {ratio}")
    if ratio in (0, 1):
        return dict(high if ratio else low)
    return {name: torch.lerp(low[name], high[name], ratio) for name in low}


@torch.no_grad()
def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    """An exponential moving average in place: ``average <- decay average + (1 - decay) weights``."""
    torch._foreach_lerp_(list(average), list(weights), 1 - decay)  # as torch.optim.swa_utils does
