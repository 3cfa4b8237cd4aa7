"""Whether two shares of right pictures differ, where both were asked the same prompts from the same noise."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from benchmarks.quality.pictures import sign_test, wilson_interval
from quantization.errors import InputError

__all__ = ["PairedDifference", "paired_difference"]


class PairedDifference(msgspec.Struct, frozen=True):
    """How a share differs from a reference's.

    Attributes:
        count: of pairs.
        share: of right ones.
        reference_share: the reference's.
        difference: of the two, above 0 where more are right than in the reference.
        low: lower end of its 95 % interval.
        high: upper end.
        lost: right in the reference alone.
        won: right here alone.
        p_value: of lost and won differing as they do by chance (exact McNemar test).
    """

    count: int
    share: float
    reference_share: float
    difference: float
    low: float
    high: float
    lost: int
    won: int
    p_value: float

    def within(self, margin: float) -> bool:
        """Whether the share is not below the reference's by more than a margin: the interval's far end decides."""
        return self.low >= -margin


def paired_difference(reference: np.ndarray, right: np.ndarray) -> PairedDifference:
    """Compare verdicts, pair by pair.

    The interval is Newcombe's for paired proportions (Improved confidence intervals for the difference between binomial
    proportions based on paired data, Statistics in Medicine 17 (1998), method 10): Wilson's intervals of the two shares, put
    together as their correlation says. It stays within -1 and 1 and is right near 0 flips, where the normal one has no width.

    Args:
        reference: verdicts of the reference, ``[pairs]`` of bool.
        right: the others, of the same prompts and noise.

    Raises:
        InputError: there are none, or not as many of both.
    """
    if reference.shape != right.shape or reference.ndim != 1 or not reference.size:
        raise InputError(f"Verdicts cannot be paired: {list(reference.shape)} and {list(right.shape)}.")
    count = reference.size
    both, neither = int((reference & right).sum()), int((~reference & ~right).sum())
    won, lost = int((right & ~reference).sum()), int((reference & ~right).sum())
    share, other = (both + won) / count, (both + lost) / count
    (low, high), (other_low, other_high) = (wilson_interval(both + side, count) for side in (won, lost))
    phi = _correlation(both, won, lost, neither)
    down = _distance(share - low, other_high - other, phi)
    up = _distance(high - share, other - other_low, phi)
    difference = share - other
    return PairedDifference(count, share, other, difference, difference - down, difference + up, lost, won, sign_test(lost, won))


def _correlation(both: int, won: int, lost: int, neither: int) -> float:
    """Of the verdicts, a positive one with Newcombe's correction for continuity; 0 where a side never changes."""
    sides = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    if not sides:
        return 0.0
    covariance = float(both * neither - won * lost)
    if covariance > 0:
        covariance = max(covariance - (both + won + lost + neither) / 2, 0.0)
    return covariance / math.sqrt(sides)


def _distance(own: float, other: float, phi: float) -> float:
    return math.sqrt(max(own**2 - 2 * phi * own * other + other**2, 0.0))
