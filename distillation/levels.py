"""The student's noise levels, and the teacher's substeps through them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from quantization.errors import InputError

__all__ = ["checked", "segments", "shifted", "substeps", "through"]

#: Four steps of a flow that is shifted by 3, SD3's own: evenly spaced before the shift.
FOUR = (1.0, 0.9, 0.75, 0.5, 0.0)


def shifted(sigma: float, shift: float) -> float:
    """SD3's shift of a level towards noise: ``shift s / (1 + (shift - 1) s)`` (2403.03206, section 5.3.2).

    >>> [shifted(s, 3) for s in (1, .75, .5, .25, 0)]
    [1.0, 0.9, 0.75, 0.5, 0.0]
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def checked(levels: Sequence[float], where: str) -> tuple[float, ...]:
    """Levels that a student can sample at: from 1 strictly down to 0.

    Raises:
        InputError: they are not.
    """
    falls = all(after < now for now, after in itertools.pairwise(levels))
    if len(levels) < 2 or levels[0] != 1 or levels[-1] != 0 or not falls:
        raise InputError(f"{where}: levels go from 1 down to 0, got {list(levels)}.", remedy="for example [1, 0.9, 0.75, 0.5, 0]")
    return tuple(float(level) for level in levels)


def segments(levels: Sequence[float]) -> list[tuple[float, float]]:
    """The steps: (level before, level after).

    >>> segments((1, .75, 0))
    [(1, 0.75), (0.75, 0)]
    """
    return list(itertools.pairwise(levels))


def through(levels: Sequence[float], nodes: Sequence[float]) -> list[list[float]]:
    """Levels as a list for each segment of nodes that are among them, both ends included.

    >>> through((1, .9, .75, .5, 0), (1, .75, 0))
    [[1, 0.9, 0.75], [0.75, 0.5, 0]]
    """
    return [[level for level in levels if low <= level <= high] for high, low in segments(nodes)]


def substeps(levels: Sequence[float], count: int, shift: float = 3.0) -> list[list[float]]:
    """The teacher's levels through the student's, a list for each of the student's steps, both ends included.

    The teacher takes about ``count`` steps in all, evenly spaced before the shift as in its own sampling; each segment gets a
    share by its width there, at least one. The student's levels are nodes, so that the states that it learns are the teacher's
    own.

    >>> [len(part) - 1 for part in substeps((1, .9, .75, .5, 0), 28)]
    [7, 7, 7, 7]
    """
    parts = []
    for high, low in segments(levels):
        ends = [level / (shift - (shift - 1) * level) for level in (high, low)]
        steps = max(1, round(count * (ends[0] - ends[1])))
        inner = [shifted(ends[0] + (ends[1] - ends[0]) * k / steps, shift) for k in range(1, steps)]
        parts.append([high, *inner, low])
    return parts
