from __future__ import annotations

import numpy as np
import pytest

from quantization.codecs.codec import roundtrip
from quantization.equalisation import equalised, input_factors
from quantization.schemes import parse_scheme
from quantization.sensitivity import Sensitivity

RNG = np.random.default_rng(0)


def test_factors_by_hand() -> None:
    """Mean squares of 4 and 1: factors are their fourth roots, but for a geometric mean of 1 and the thousandth of the unseen."""
    factors = input_factors(np.diag([4.0, 1.0]))
    assert factors == pytest.approx([2**0.25, 2**-0.25], rel=1e-3)
    assert input_factors(np.diag([4.0, 1.0]), 1.0) == pytest.approx([2**0.5, 2**-0.5], rel=1e-3)
    assert input_factors(np.diag([4.0, 1.0]), 0.0).tolist() == [1, 1]


@pytest.mark.parametrize("squares", [[0.0, 0.0], [1.0, 0.0], [1e-30, 1e30]], ids=str)
def test_unseen_inputs_keep_a_finite_factor(squares: list[float]) -> None:
    factors = input_factors(np.diag(squares))
    assert np.isfinite(factors).all()
    assert factors.max() / factors.min() <= 2001**0.25 * 1.001  # shares of at most 2 and at least a thousandth


def test_what_is_known_is_of_the_scaled_weight() -> None:
    """The Gram matrix is that of the divided inputs, and an error predicted for the scaled weight is that of the weight."""
    x, weight = RNG.standard_normal((50, 8)) * [8, 4, 2, 1, 1, 1, 1, 1], RNG.standard_normal((6, 8))
    sensitivity = Sensitivity(RNG.random(6), RNG.random(8), {0: 1.0}, x.T @ x)
    factors = input_factors(x.T @ x).astype(np.float64)
    scaled = equalised(sensitivity, factors)
    assert scaled.gram == pytest.approx((x / factors).T @ (x / factors))
    assert scaled.columns == pytest.approx(sensitivity.columns / factors**2)
    # M' = M / s: sums over both axes agree, as they must for one matrix of squares
    assert scaled.rows.sum() / scaled.columns.sum() == pytest.approx(sensitivity.rows.sum() / sensitivity.columns.sum())
    moved = weight + 0.01 * RNG.standard_normal(weight.shape)
    ratio = scaled.weight_error(weight * factors, moved * factors) / sensitivity.weight_error(weight, moved)
    assert ratio == pytest.approx(
        scaled.rows[0] / sensitivity.rows[0] * np.trace(sensitivity.gram) / np.trace(scaled.gram), rel=1e-4
    )


def test_encoding_the_scaled_weight_serves_the_divided_inputs() -> None:
    """What comes back is the weight without the factors. Steps of 1/50 of the rows' spread leave 0.6 %."""
    x, weight = RNG.standard_normal((50, 8)) * [8, 4, 2, 1, 1, 1, 1, 1], RNG.standard_normal((6, 8)).astype(np.float32)
    factors, scheme = input_factors(x.T @ x), parse_scheme("w8a8")
    stored = roundtrip(weight, scheme, "w", factors=factors)
    assert stored * factors == pytest.approx(roundtrip(weight * factors, scheme, "w"), rel=1e-6)
    assert np.linalg.norm(stored - weight) < 0.01 * np.linalg.norm(weight)
