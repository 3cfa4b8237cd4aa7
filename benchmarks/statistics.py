"""Summaries of samples, and whether two sets of them differ. Pure functions; the random generator is given.

Medians and their spread are what a busy machine disturbs least (pyperf's practice, https://pyperf.readthedocs.io).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

UNSTABLE = 0.1  # spread over median from which on a figure is not to be quoted
MIN_SAMPLES = 5  # fewer cannot be told apart: 2 * 5! * 5! / 10! = 0.008 is the least p that five against five can have
RESAMPLES = 4000


@dataclass(frozen=True)
class Summary:
    """Of samples, in their unit.

    Attributes:
        count: how many.
        median: the middle.
        p90: nine of ten are at most this.
        p99: likewise.
        spread: median absolute deviation times 1.4826, which for normal noise is its standard deviation.
    """

    count: int
    median: float
    p90: float
    p99: float
    spread: float

    @property
    def stable(self) -> bool:
        """Whether the spread is small beside the median."""
        return self.count >= MIN_SAMPLES and self.spread <= UNSTABLE * self.median


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize samples.

    >>> summarize([4.0, 1.0, 2.0, 3.0, 100.0])
    Summary(count=5, median=3.0, p90=61.6, p99=96.16, spread=1.4826)
    """
    array = np.asarray(samples, np.float64)
    middle = float(np.median(array))
    spread = 1.4826 * float(np.median(np.abs(array - middle)))
    return Summary(
        len(array), middle, round(float(np.percentile(array, 90)), 9), round(float(np.percentile(array, 99)), 9), spread
    )


@dataclass(frozen=True)
class Difference:
    """Of two sets of samples.

    Attributes:
        ratio: median of the second over median of the first.
        low: of the ratio's 95 % interval.
        high: of the ratio's 95 % interval.
        p_value: of a permutation test of the medians' difference.
        verdict: ``slower``, ``faster``, ``no significant difference`` or ``too few samples``.
    """

    ratio: float
    low: float
    high: float
    p_value: float
    verdict: str


def compare(first: Sequence[float], second: Sequence[float], rng: np.random.Generator) -> Difference:
    """Whether the second differs from the first: a bootstrap interval of the ratio of medians, and a permutation test.

    Args:
        first: samples.
        second: samples in the same unit.
        rng: resamples.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if min(len(a), len(b)) < MIN_SAMPLES:
        nan = float("nan")
        return Difference(float(np.median(b) / np.median(a)) if len(a) and len(b) else nan, nan, nan, nan, "too few samples")
    medians = [np.median(rng.choice(x, (RESAMPLES, len(x))), axis=1) for x in (a, b)]
    low, high = np.percentile(medians[1] / medians[0], [2.5, 97.5])
    pooled = np.concatenate([a, b])
    shuffled = rng.permuted(np.tile(pooled, (RESAMPLES, 1)), axis=1)
    differences = np.abs(np.median(shuffled[:, : len(a)], axis=1) - np.median(shuffled[:, len(a) :], axis=1))
    p_value = float((1 + np.sum(differences >= abs(np.median(a) - np.median(b)) - 1e-12)) / (1 + RESAMPLES))
    ratio = float(np.median(b) / np.median(a))
    differs = p_value < 0.05 and not low <= 1 <= high
    verdict = "no significant difference" if not differs else "slower" if ratio > 1 else "faster"
    return Difference(ratio, float(low), float(high), p_value, verdict)
