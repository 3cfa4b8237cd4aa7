"""Which samples a step takes: each once an epoch, whoever takes them, in an order that looks like none."""

from __future__ import annotations

import itertools

import pytest

from distillation.data.order import numbers_of


@pytest.mark.parametrize(
    ("length", "batch"),
    [(1, 1), (1, 7), (2, 1), (3, 7), (4, 3), (5, 2), (17, 1), (17, 64), (100, 64), (101, 7), (1000, 64), (10_007, 999)],
)
def test_an_epoch_takes_each_sample_once(length: int, batch: int) -> None:
    """Batches cross the border between epochs; a batch larger than an epoch takes samples more than once."""
    steps = -(-3 * length // batch)
    row = [number for step in range(steps) for number in numbers_of(step, batch, range(batch), length, 5)]
    for epoch in range(3):
        assert sorted(row[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_processes_together_take_what_one_takes() -> None:
    whole = numbers_of(12, 8, range(8), 1000, 3)
    assert [number for part in (range(4), range(4, 8)) for number in numbers_of(12, 8, part, 1000, 3)] == whole
    assert [number for sample in range(8) for number in numbers_of(12, 8, [sample], 1000, 3)] == whole
    assert numbers_of(12, 8, [], 1000, 3) == []


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(numbers_of(epoch, 50, range(50), 50, seed)) for epoch in range(20) for seed in (0, 1, 1 << 40)}
    assert len(orders) == 60


@pytest.mark.parametrize("length", [2, 3, 7, 60])
def test_each_sample_is_as_likely_at_each_place(length: int) -> None:
    """Of n = 4000 epochs, a number is at a place n / length times; the deviation of the count is sqrt(n p (1 - p))."""
    n, p = 4000, 1 / length
    counts = [[0] * length for _ in range(2)]
    row = numbers_of(0, n * length, range(n * length), length, 1)
    for epoch in range(n):
        for index, place in enumerate((0, length - 1)):
            counts[index][row[epoch * length + place]] += 1
    worst = max(abs(count - n * p) for counted in counts for count in counted)
    assert worst < 4.5 * (n * p * (1 - p)) ** 0.5


def test_neighbours_are_strangers() -> None:
    """The mean distance of two uniform numbers below n is n / 3, its deviation over m pairs n / sqrt(18 m)."""
    n = 10_000
    row = numbers_of(0, n, range(n), n, 2)
    distance = sum(abs(a - b) for a, b in itertools.pairwise(row)) / (n - 1)
    assert abs(distance - n / 3) < 4 * n / (18 * n) ** 0.5
    assert sum(number == place for place, number in enumerate(row)) < 8  # a random order leaves one where it was


def test_far_on_and_far_up() -> None:
    """Numbers beyond 32 bits, of steps and of samples."""
    length = (1 << 40) + 15
    numbers = numbers_of(1 << 41, 64, range(64), length, 0)
    assert len(set(numbers)) == 64
    assert all(0 <= number < length for number in numbers)
    assert max(numbers) > 1 << 38


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="no samples"):
        numbers_of(0, 1, range(1), 0, 0)
