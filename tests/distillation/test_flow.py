"""Conversions and transitions against values that were worked out by hand for data N(1, .25)."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillation.flow import diffuse, euler, noise, score, transit, transition, velocity, x0
from tests.distillation.gaussian import Teacher, velocity_of

pytestmark = pytest.mark.filterwarnings("error")


def number(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


@pytest.mark.parametrize(("t", "v"), [(1.0, -0.5), (0.75, -0.70270270), (0.5, -1.0)])
def test_the_teacher_of_the_gaussian_world(t: float, v: float) -> None:
    assert Teacher()(number(0.5), torch.tensor([t], dtype=torch.float64)).item() == pytest.approx(v, abs=5e-9)


def test_its_exact_states() -> None:
    """One straight way from noise .5: many small steps reach the states that the quantiles of the normal laws give."""
    ends = [1.0, 0.9, 0.75, 0.5, 0.0]
    state, reached = number(0.5), []
    for high, low in itertools.pairwise(ends):
        fine = [high + (low - high) * k / 2000 for k in range(2001)]
        state = euler(Teacher(), state, fine, None)[-1]
        reached.append(state.item())
    assert reached == pytest.approx([0.550694, 0.630173, 0.779508, 1.25], abs=2e-4)  # Euler's error falls with 1 / 2000


def test_conversions_at_a_step_of_a_student() -> None:
    x, t, v = number(0.5), 0.75, number(-0.8)
    assert x0(x, t, v).item() == pytest.approx(1.1)
    assert noise(x, t, v).item() == pytest.approx(0.3)
    assert diffuse(x0(x, t, v), t, noise(x, t, v)).item() == pytest.approx(0.5)
    assert velocity(x, t, score(x, t, v)).item() == pytest.approx(-0.8)


def test_scores_of_student_and_teacher() -> None:
    x_s, s = number(0.7), torch.tensor([0.5], dtype=torch.float64)
    v_real = Teacher()(x_s, s)
    v_fake = velocity_of(0.475, 0.46828125, 0.5, x_s, s[:, None])
    assert [v_real.item(), v_fake.item()] == pytest.approx([-0.76, -0.91951952], abs=5e-9)
    assert [score(x_s, s, v_real).item(), score(x_s, s, v_fake).item()] == pytest.approx([-0.64, -0.48048048], abs=5e-9)


def test_a_transition_in_numbers() -> None:
    a, sigma = transition(0.5, 0.55)
    assert [a.item(), sigma.item() ** 2] == pytest.approx([0.9, 0.1])
    v = velocity_of(0.475, 0.46828125, 0.5, number(0.7), number(0.55))
    assert score(number(0.7), 0.55, v).item() == pytest.approx(-0.56852818, abs=5e-9)
    assert v.item() == pytest.approx(-0.86068778, abs=5e-9)


@given(st.floats(0, 0.95), st.floats(0, 1), st.floats(0, 1))
def test_transitions_compose(s: float, up: float, further: float) -> None:
    u = s + (0.97 - s) * up
    t = u + (1 - u) * further
    (a, sigma), (a_su, sigma_su), (a_ut, sigma_ut) = transition(s, t), transition(s, u), transition(u, t)
    assert (a_su * a_ut).item() == pytest.approx(a.item(), abs=1e-12)
    # variances add; of numbers of size 1 in float64, a dozen operations: 1e-12 leaves a factor of 400
    assert (a_ut**2 * sigma_su**2 + sigma_ut**2).item() == pytest.approx(sigma.item() ** 2, abs=1e-12)


@given(st.floats(0, 0.99))
def test_a_transition_to_the_same_level_changes_nothing(s: float) -> None:
    level = torch.full((3,), s)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transit(x, level, level, torch.ones_like(x)), x)


def test_from_clean_data_a_transition_is_the_forward_process() -> None:
    a, sigma = transition(0.0, 0.3)
    assert [a.item(), sigma.item()] == pytest.approx([0.7, 0.3])


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (1.0, 1.0), (float("nan"), 0.5)])
def test_levels_that_no_transition_joins(s: float, t: float) -> None:
    with pytest.raises(ValueError, match="a transition goes from"):
        transition(s, t)


def test_levels_are_a_sample_s_own() -> None:
    """Shapes of pictures, of tokens and of plain vectors; each sample at its level."""
    for shape in ((2, 3), (2, 4, 3, 5), (2, 7, 8)):
        x, v = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        t = torch.tensor([0.2, 0.9], dtype=torch.float64)
        both = x0(x, t, v)
        assert torch.equal(both[0], x0(x[:1], 0.2, v[:1])[0])
        assert torch.equal(both[1], x0(x[1:], 0.9, v[1:])[0])
