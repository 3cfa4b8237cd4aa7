"""Random numbers that depend on where they are drawn and on nothing else."""

from __future__ import annotations

import pytest
import torch

from distillation.counters import Counter, philox

LIKE = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, int], answer: str) -> None:
    words = philox([torch.tensor([word]) for word in counter], key)
    assert " ".join(f"{word.item():08x}" for word in words) == answer


def test_a_batch_does_not_depend_on_who_draws_it() -> None:
    whole = Counter(7, "match", 12, range(6)).normal("noise", (3, 5), LIKE)
    parts = [Counter(7, "match", 12, numbers).normal("noise", (3, 5), LIKE) for numbers in (range(2), (2, 3, 4), [5])]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("change", [{"seed": 8}, {"stage": "split"}, {"step": 13}, {"samples": range(6, 12)}])
def test_each_part_of_the_place_counts(change: dict[str, object]) -> None:
    place = {"seed": 7, "stage": "match", "step": 12, "samples": range(6)}
    here, there = Counter(**place), Counter(**place | change)
    assert not torch.isclose(here.normal("noise", (64,), LIKE), there.normal("noise", (64,), LIKE)).any()
    assert not torch.isclose(here.uniform("levels", LIKE), here.uniform("noise", LIKE)).any()


def test_moments() -> None:
    """Of 400,000 numbers: mean 0 within 4 / sqrt(n), variance 1 within 4 sqrt(2 / n), none correlated with its neighbour."""
    x = Counter(0, "a", 0, range(400)).normal("noise", (1000,), LIKE)
    n = x.numel()
    assert abs(x.mean().item()) < 4 * n**-0.5
    assert abs(x.var().item() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x[:, 1:] * x[:, :-1]).mean().item()) < 4 * n**-0.5
    assert abs((x[1:] * x[:-1]).mean().item()) < 4 * n**-0.5
    whole = Counter(0, "a", 0, range(40_000)).integers("steps", 4)
    assert (whole.bincount(minlength=4) - 10_000).abs().max() < 4 * (40_000 * 3 / 16) ** 0.5


def test_odd_shapes_and_none() -> None:
    assert Counter(0, "a", 0, range(2)).normal("noise", (3,), LIKE).shape == (2, 3)
    assert Counter(0, "a", 0, range(2)).normal("noise", (), torch.zeros((), dtype=torch.bfloat16)).dtype == torch.bfloat16
