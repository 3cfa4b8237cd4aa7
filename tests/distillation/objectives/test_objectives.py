"""Guidance, trajectory guidance, heads and branches: identities and values worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from distillation.levels import FOUR, checked, segments, substeps
from distillation.objectives import heads, trajectory
from distillation.objectives.branches import merge, owner, update_average
from distillation.objectives.guidance import guided, parts
from quantization.errors import InputError
from tests.distillation.gaussian import Teacher


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# guidance


def test_the_two_parts_add_up() -> None:
    cond, uncond, fake = (drawn(k, 3, 4) for k in range(3))
    matching, push = parts(cond, uncond, fake, 4.5)
    assert torch.allclose(matching + push, guided(cond, uncond, 4.5) - fake)


def test_no_guidance_is_the_conditional_velocity_bit_for_bit() -> None:
    cond, uncond = drawn(0, 3, 4), drawn(1, 3, 4)
    assert torch.equal(guided(cond, uncond, 1), cond)
    assert torch.equal(guided(cond, uncond, 0), uncond)
    assert not parts(cond, uncond, uncond, 1)[1].any()


# trajectory guidance


def test_targets_of_the_gaussian_world() -> None:
    """Mean velocities of the exact states from .5: -.506939, -.529858, -.597343, -.940983."""
    states = trajectory.states(Teacher(), torch.tensor([[0.5]], dtype=torch.float64), substeps(FOUR, 8000), None)
    got = []
    for step, (before, after) in enumerate(segments(FOUR)):
        t, s = torch.tensor([before], dtype=torch.float64), torch.tensor([after], dtype=torch.float64)
        got.append(trajectory.target(states[:, step], states[:, step + 1], t, s).item())
    assert got == pytest.approx([-0.506939, -0.529858, -0.597343, -0.940983], abs=5e-4)  # Euler's error: 1 / 2000 a segment


def test_a_student_that_follows_has_no_loss() -> None:
    states = trajectory.states(Teacher(), drawn(0, 8, 1), [[1.0, 0.75], [0.75, 0.0]], None)
    t, s = torch.ones(8, dtype=torch.float64), torch.full((8,), 0.75, dtype=torch.float64)
    assert trajectory.loss(Teacher(), states[:, 0], states[:, 1], t, s, None).item() < 1e-24
    assert trajectory.loss(Teacher(), states[:, 0] + 0.1, states[:, 1], t, s, None).item() > 1e-3


@pytest.mark.parametrize("levels", [FOUR, (1, 0.75, 0), (1, 0), (1, 0.896, 0.737, 0.602, 0)])
def test_the_student_s_levels_are_nodes_of_the_teacher_s(levels: tuple[float, ...]) -> None:
    parts_ = substeps(levels, 28)
    assert [(part[0], part[-1]) for part in parts_] == segments(levels)
    assert abs(sum(len(part) - 1 for part in parts_) - 28) <= len(parts_)
    assert all(b < a for part in parts_ for a, b in itertools.pairwise(part))


@pytest.mark.parametrize("levels", [(1, 0.9), (0.9, 0), (1, 0.5, 0.5, 0), (1, 0.5, 0.7, 0), (1,), (), (1, math.nan, 0)])
def test_levels_that_cannot_be_sampled(levels: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="levels go from 1 down to 0"):
        checked(levels, "stage x")


# heads


def test_fresh_heads_say_nothing() -> None:
    fresh = heads.Heads([6, 8])
    logits = fresh([torch.randn(4, 5, 6), torch.randn(4, 3, 8)])
    assert logits.shape == (4, 2)
    assert not logits.any()
    assert heads.generator_loss(logits).item() == pytest.approx(math.log(2))
    assert heads.discriminator_loss(logits, logits).item() == pytest.approx(2 * math.log(2))


def test_the_slope_at_logit_zero_is_minus_a_half() -> None:
    logit = torch.zeros(1, requires_grad=True)
    heads.generator_loss(logit).backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(-0.5)


def test_r1_of_constant_heads_is_zero_and_of_others_what_it_is() -> None:
    one = heads.Heads([4])
    features = torch.randn(3, 5, 4)
    assert heads.r1(one, [features]).item() == 0
    with torch.no_grad():
        one[0].outer.weight.normal_()
    delta, direction = 1e-3, torch.randn(3, 5, 4)
    moved = [one([features + sign * delta * direction]).sum() for sign in (1, -1)]
    slope = torch.autograd.grad(one([leaf := features.clone().requires_grad_()]).sum(), leaf)[0]
    assert (slope * direction).sum().item() == pytest.approx(((moved[0] - moved[1]) / (2 * delta)).item(), rel=1e-2)
    assert heads.r1(one, [features]).item() == pytest.approx(slope.flatten(1).square().sum(1).mean().item(), rel=1e-5)


def test_a_renewed_head_forgets_its_optimizer_too() -> None:
    both = heads.Heads([4, 4])
    optimizer = torch.optim.AdamW(both.parameters(), lr=0.1)
    heads.discriminator_loss(both([torch.randn(2, 3, 4)] * 2), both([torch.randn(2, 3, 4)] * 2)).backward()
    optimizer.step()
    kept = both[1].outer.bias.detach().clone()
    assert heads.refresh(both, [0.0049, 0.0051], optimizer, seed=3) == [0]
    assert not both[0].outer.weight.any()
    assert all(parameter not in optimizer.state for parameter in both[0].parameters())
    assert torch.equal(both[1].outer.bias, kept)
    assert all(parameter in optimizer.state for parameter in both[1].parameters())
    before = both[0].inner.weight.detach().clone()
    heads.refresh(both, [0.0, 1.0], optimizer, seed=3)
    assert torch.equal(both[0].inner.weight, before)  # the same seed: the same on every process


# branches


def test_merging_at_the_ends_is_bit_for_bit() -> None:
    low, high = {"a": torch.randn(3).half()}, {"a": torch.randn(3).half()}
    assert torch.equal(merge(low, high, 0)["a"], low["a"])
    assert torch.equal(merge(low, high, 1)["a"], high["a"])
    middle = merge({"a": torch.zeros(2)}, {"a": torch.ones(2)}, 0.7)["a"]
    assert middle.tolist() == pytest.approx([0.7, 0.7])


@pytest.mark.parametrize(
    ("low", "high", "ratio"), [({"a": 0}, {"b": 0}, 0.5), ({"a": 0}, {"a": 0}, 1.5), ({"a": 0}, {"a": 0}, math.nan)]
)
def test_what_cannot_be_merged(low: dict[str, object], high: dict[str, object], ratio: float) -> None:
    with pytest.raises(ValueError, match="merged at a ratio"):
        merge(low, high, ratio)


def test_ranges_are_disjoint_and_whole() -> None:
    assert owner(FOUR, 0.75) == [1, 1, 0, 0]
    assert owner(FOUR, 0.5) == [1, 1, 1, 0]


def test_the_average() -> None:
    average = [torch.zeros(2), torch.ones(1)]
    update_average(average, [torch.ones(2), torch.ones(1)], 0.9)
    assert average[0].tolist() == pytest.approx([0.1, 0.1])
    assert average[1].tolist() == [1]
