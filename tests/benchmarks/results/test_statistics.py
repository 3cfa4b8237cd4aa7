from __future__ import annotations

import numpy as np
import pytest

from benchmarks.results.statistics import by_rounds, compare, summarize
from quantization.errors import InputError


def rounds(rng: np.random.Generator, median: float, between: float = 0.05, count: int = 5, runs: int = 4) -> list[np.ndarray]:
    """Rounds whose level differs from process to process by ``between`` of the median, runs by a tenth of that."""
    levels = median * (1 + between * rng.standard_normal(count))
    return [level * (1 + between / 10 * rng.standard_normal(runs)) for level in levels]


def test_summary_of_hand_made_samples() -> None:
    summary = summarize([10.0, 12.0, 11.0, 10.0, 30.0])
    assert (summary.count, summary.median) == (5, 11.0)
    assert summary.spread == pytest.approx(1.4826)  # deviations 1, 1, 0, 1, 19
    assert not summary.stable
    assert summarize([10.0] * 5).stable
    assert not summarize([10.0] * 4).stable  # too few to know


def test_slower_is_found_and_noise_is_not() -> None:
    """Noise between processes ten times that within: tests on samples would call nearly every pair different."""
    rng = np.random.default_rng(0)
    noise = [compare(rounds(rng, 100), rounds(rng, 100), rng).verdict for _ in range(200)]
    assert noise.count("no significant difference") >= 196  # one in a hundred may be called different
    slow = [compare(rounds(rng, 100), rounds(rng, 130), rng) for _ in range(50)]
    assert sum(result.verdict == "slower" for result in slow) >= 48
    assert all(result.low < 1.3 * 1.1 and result.high > 1.3 * 0.9 for result in slow)
    assert compare(rounds(rng, 130), rounds(rng, 100), rng).verdict == "faster"


def test_too_few_rounds_are_said_so() -> None:
    rng = np.random.default_rng(0)
    assert compare(rounds(rng, 100, count=4), rounds(rng, 200, count=4), rng).verdict == "too few rounds"


def test_small_differences_are_none() -> None:
    """One percent, measured to a thousandth: true and of no consequence."""
    rng = np.random.default_rng(0)
    assert compare(rounds(rng, 100, 1e-3), rounds(rng, 101, 1e-3), rng).verdict == "no significant difference"


def test_p_value_of_five_against_five() -> None:
    """Parted completely: 2 of the 252 ways to deal ten medians out."""
    first, second = ([np.array([float(i)]) for i in range(start, start + 5)] for start in (1, 101))
    result = compare(first, second, np.random.default_rng(0))
    assert result.p_value == pytest.approx(2 / 252)
    assert result.verdict == "slower"


@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-7, 1e7])
def test_ways_that_part_alike_all_count(scale: float) -> None:
    """Four ones and a two against four twos and a one: as far apart are 25 ways each way round, farther one, of 252."""
    ones, twos = np.array([scale]), np.array([2 * scale])
    result = compare([ones, ones, twos, ones, ones], [twos, ones, twos, twos, twos], np.random.default_rng(0))
    assert result.p_value == pytest.approx(2 * (25 + 1) / 252)


def test_p_value_of_unequal_numbers_of_rounds() -> None:
    """Three against two: no other of the ten ways parts the means by 13, in neither direction (1 and 2 against the rest: 9.5)."""
    first, second = ([np.array([value]) for value in values] for values in ((1.0, 2.0, 3.0), (10.0, 20.0)))
    result = compare(first, second, np.random.default_rng(0))
    assert result.p_value == pytest.approx(1 / 10)
    assert result.verdict == "too few rounds"


def test_interval_of_two_rounds() -> None:
    """Medians of two drawn from 100 and 200: 100, 150 or 200, at both ends in a quarter of the draws each."""
    side = [np.array([100.0]), np.array([200.0])]
    result = compare(side, side, np.random.default_rng(0))
    assert (result.ratio, result.low, result.high) == (1.0, 0.5, 2.0)


def test_of_one_round_nothing_is_known() -> None:
    one, five = [np.array([100.0])], [np.array([200.0])] * 5
    result = compare(one, five, np.random.default_rng(0))
    assert (result.ratio, result.low, result.high, result.p_value, result.verdict) == (2.0, 2.0, 2.0, 1.0, "too few rounds")


def test_many_rounds_are_dealt_out_at_random() -> None:
    """20 against 20 could be dealt out in 10^11 ways. Of those tried none parts them so far, but for the one observed."""
    first, second = ([np.array([float(i)]) for i in range(start, start + 20)] for start in (100, 200))
    result = compare(first, second, np.random.default_rng(0))
    assert 0 < result.p_value < 1e-4
    assert result.verdict == "slower"


def test_without_scipy_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.extra.find_spec", lambda name: None)
    rounds_ = [np.array([1.0])] * 5
    with pytest.raises(InputError, match=r"not installed: scipy.\nWhat to do: pip install 'flash-deploy\[bench\]'"):
        compare(rounds_, rounds_, np.random.default_rng(0))


def test_rounds_are_apart() -> None:
    assert [part.tolist() for part in by_rounds([1.0, 2.0, 3.0, 4.0], 2)] == [[1, 2], [3, 4]]
