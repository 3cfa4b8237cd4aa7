from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.codecs.kmeans import kmeans


def error(values: np.ndarray, weights: np.ndarray, centres: np.ndarray, labels: np.ndarray) -> float:
    return float(np.sum(weights * (values - centres[labels]) ** 2))


def best_by_trying_all(values: np.ndarray, weights: np.ndarray, clusters: int) -> float:
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), clusters - 1):
        total = 0.0
        for i, j in itertools.pairwise((0, *cuts, len(values))):
            centre = np.average(values[i:j], weights=weights[i:j])
            total += float(np.sum(weights[i:j] * (values[i:j] - centre) ** 2))
        best = min(best, total)
    return best


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1000, 1000), st.integers(1, 50)), min_size=1, max_size=9, unique_by=lambda pair: pair[0]),
    st.integers(1, 5),
)
def test_optimal(pairs: list[tuple[int, int]], clusters: int) -> None:
    values, weights = np.array(sorted(pairs), np.float64).T
    centres, labels = kmeans(values, weights, clusters)
    assert len(centres) == min(clusters, len(values))
    assert (np.diff(labels) >= 0).all()
    wanted = best_by_trying_all(values, weights, len(centres))
    # Prefix sums of at most 9 * 50 * 1000^2 in fp64: rounding of 1e-7 at the very most.
    assert error(values, weights, centres, labels) == pytest.approx(wanted, abs=1e-6)


def test_far_from_the_origin() -> None:
    """Sums of squares would cancel: 1e6 ± 1 needs 12 digits of each, 24 of their products."""
    values = 1e6 + np.array([-1.0, -0.999, 0.998, 1.0])
    centres, labels = kmeans(values, np.ones(4), 2)
    assert labels.tolist() == [0, 0, 1, 1]
    assert centres == pytest.approx(1e6 + np.array([-0.9995, 0.999]), abs=1e-9)


def test_no_worse_than_lloyd_on_a_histogram() -> None:
    rng = np.random.default_rng(0)
    values = np.unique(rng.standard_normal(3000))
    weights = rng.uniform(1, 5, len(values))
    centres, labels = kmeans(values, weights, 16)
    lloyd = np.quantile(values, (np.arange(16) + 0.5) / 16)
    for _ in range(200):
        near = np.abs(values[:, None] - lloyd).argmin(axis=1)
        lloyd = np.bincount(near, weights * values, 16) / np.bincount(near, weights, 16)
    near = np.abs(values[:, None] - lloyd).argmin(axis=1)
    assert error(values, weights, centres, labels) <= error(values, weights, lloyd, near) * (1 + 1e-12)
