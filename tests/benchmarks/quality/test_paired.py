"""Paired shares, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.paired import paired_difference
from quantization.errors import InputError


def verdicts(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    reference = np.repeat([True, True, False, False], [both, lost, won, neither])
    return reference, np.repeat([True, False, True, False], [both, lost, won, neither])


def test_newcombes_interval_by_hand() -> None:
    """Of 100 pairs 70, 10, 5 and 15: shares .75 and .80, Wilson (.65695, .82455) and (.71112, .86663).

    ad - bc = 1000, less 50: phi = 950 / sqrt(75 * 25 * 80 * 20) = .54848. Below: .09305 and .06663, so sqrt(.0086583 - 2 * .54848
    * .09305 * .06663 + .0044396) = .07934; above: .07455 and .08888, so .07862.
    """
    got = paired_difference(*verdicts(70, 10, 5, 15))
    assert (got.count, got.share, got.reference_share, got.lost, got.won) == (100, 0.75, 0.8, 10, 5)
    assert got.difference == pytest.approx(-0.05)
    assert (got.low, got.high) == (pytest.approx(-0.05 - 0.07934, abs=2e-4), pytest.approx(-0.05 + 0.07862, abs=2e-4))
    assert got.p_value == pytest.approx(0.3018, abs=1e-4)  # twice the chance of at most 5 heads in 15 throws


def test_pairs_say_more_than_shares() -> None:
    """The same shares, unpaired as far as they can be, leave a wider interval."""
    close, far = paired_difference(*verdicts(870, 30, 10, 90)), paired_difference(*verdicts(790, 110, 90, 10))
    assert close.difference == far.difference == pytest.approx(-0.02)
    assert close.high - close.low < 0.6 * (far.high - far.low)


def test_nothing_that_differs_still_has_an_interval() -> None:
    same = paired_difference(*verdicts(0, 0, 0, 50))
    assert (same.difference, same.p_value) == (0, 1)
    assert -0.1 < same.low < 0 < same.high < 0.1


def test_the_far_end_decides_and_can_fail() -> None:
    """2 points behind of 10,000 pairs is within 3; of 1000 pairs it may be more; 4 points behind is not."""
    assert paired_difference(*verdicts(8800, 400, 200, 600)).within(0.03)
    assert not paired_difference(*verdicts(880, 40, 20, 60)).within(0.03)
    assert not paired_difference(*verdicts(8800, 500, 100, 600)).within(0.03)


def test_intervals_hold_what_they_should() -> None:
    """Of 400 draws of 300 pairs, 95 % hold the true difference of 3 points; three standard errors are 3 points."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        cells = rng.multinomial(300, [0.8, 0.07, 0.04, 0.09])
        got = paired_difference(*verdicts(*cells.tolist()))
        held += got.low <= -0.03 <= got.high
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize("count", [0, 3])
def test_verdicts_that_are_no_pairs_are_refused(count: int) -> None:
    with pytest.raises(InputError, match="cannot be paired"):
        paired_difference(np.zeros(count, bool), np.zeros(2 if count else 0, bool))
