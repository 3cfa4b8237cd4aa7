"""Summaries of samples, and whether two sets of them differ (by scipy). Pure functions; the random generator is given.

Medians and their spread are what a busy machine disturbs least (pyperf's practice, https://pyperf.readthedocs.io).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.extra import need
from quantization.errors import InputError

UNSTABLE = 0.1  # spread over median from which on a figure is not to be quoted
MIN_SAMPLES = 5
MIN_ROUNDS = 5  # fewer cannot be told apart: 2 * 5! * 5! / 10! = 0.008 is the least p that five against five can have
ALPHA, LEAST = 0.01, 0.02
RESAMPLES = 4000
MOST_WAYS = 100_000  # all of up to nine rounds against nine
ALIKE = 1e-9  # of the largest median: finer than any clock, and coarser than rounding
NONE = "no significant difference"


@dataclass(frozen=True)
class Summary:
    """A summary of samples, in their unit.

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
    """How two sets of rounds differ.

    Attributes:
        ratio: median of the second over median of the first.
        low: of the ratio's 95 % interval.
        high: of the ratio's 95 % interval.
        p_value: of an exact permutation test of the rounds' medians.
        verdict: ``slower``, ``faster``, ``no significant difference`` or ``too few rounds``.
    """

    ratio: float
    low: float
    high: float
    p_value: float
    verdict: str


@dataclass(frozen=True)
class MeanInterval:
    """A mean of few samples, in their unit.

    Attributes:
        mean: of the samples.
        low: of its 95 % interval.
        high: of its 95 % interval.
    """

    mean: float
    low: float
    high: float


def t_interval(samples: Sequence[float]) -> MeanInterval:
    """The mean of samples with Student's interval; of one sample nothing is known, and its interval has no end.

    >>> t_interval([1.0, 2.0, 3.0])
    MeanInterval(mean=2.0, low=-0.484138, high=4.484138)

    Raises:
        InputError: scipy is not installed, or there is no sample.
    """
    need("scipy")
    from scipy.stats import t

    array = np.asarray(samples, np.float64)
    if not array.size:
        raise InputError("There are no samples to take a mean of.")
    mean, freedom = float(array.mean()), len(array) - 1
    if not freedom:
        return MeanInterval(mean, -np.inf, np.inf)
    reach = float(t.ppf(0.975, freedom) * array.std(ddof=1) / np.sqrt(len(array)))
    return MeanInterval(mean, round(mean - reach, 6), round(mean + reach, 6))


def by_rounds(samples: Sequence[float], rounds: int) -> list[np.ndarray]:
    """Samples of equally long rounds, one after another, apart."""
    return np.array_split(np.asarray(samples, np.float64), rounds)


def compare(first: Sequence[np.ndarray], second: Sequence[np.ndarray], rng: np.random.Generator) -> Difference:
    """Whether the second differs from the first.

    A round is one fresh process. Runs inside one are alike (where its memory lay, what else the machine did just then), so it is
    the rounds that are tested: their medians, by an exact permutation test; and bootstrapped for the interval. A comparison shows
    some twenty rows, so a row must be rarer than one in a hundred to be called a difference, and larger than :data:`LEAST`.

    Args:
        first: samples of each round.
        second: samples of each round, in the same unit.
        rng: resamples.

    Raises:
        InputError: scipy is not installed.
    """
    need("scipy")
    a, b = (np.array([np.median(samples) for samples in side]) for side in (first, second))
    ratio, least = float(_ratio(a, b)), min(len(a), len(b))
    if least == 1:  # of which nothing can be said
        return Difference(ratio, ratio, ratio, 1.0, "too few rounds")
    low, high = _interval(a, b, rng)
    p_value = _permutation_p(a, b, rng)
    if least < MIN_ROUNDS:
        return Difference(ratio, low, high, p_value, "too few rounds")
    differs = p_value < ALPHA and not low <= 1 <= high and abs(ratio - 1) >= LEAST
    verdict = NONE if not differs else "slower" if ratio > 1 else "faster"
    return Difference(ratio, low, high, p_value, verdict)


def _ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """Median of the second over median of the first."""
    ratio: np.ndarray = np.median(b, axis=axis) / np.median(a, axis=axis)
    return ratio


def _interval(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The ratio's 95 % interval: percentiles of the bootstrap."""
    from scipy.stats import bootstrap

    interval = bootstrap((a, b), _ratio, n_resamples=RESAMPLES, paired=False, method="percentile", rng=rng)
    return float(interval.confidence_interval.low), float(interval.confidence_interval.high)


def _permutation_p(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> float:
    """Share of all ways to deal the medians out that part their means as far as they are, or farther.

    Beyond :data:`MOST_WAYS`, of that many ways dealt at random.
    """
    from scipy.stats import permutation_test

    unit = ALIKE * max(np.abs(a).max(), np.abs(b).max(), np.finfo(np.float64).tiny)

    def parted(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        """In whole units: ways that part them alike come out alike whatever the order of the sums, and all of them count."""
        apart: np.ndarray = np.rint(np.abs(x.mean(axis) - y.mean(axis)) / unit)
        return apart

    return float(permutation_test((a, b), parted, n_resamples=MOST_WAYS, alternative="greater", rng=rng).pvalue)
