"""Directions against hand-derived values, and every pair of comparison and fit against its fixed point."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from distillation.batches import Batch, Networks
from distillation.flow import score, x0
from distillation.loop import run_stage
from distillation.matching import compare, direction, surrogate
from distillation.stages import MatchStage, Optimizer
from tests.distillation.gaussian import ExactFake, Linear, Teacher, law, velocity_of

# The step of the facts: student v = .4 x - 1 from t = .75 to s = .5, at x = .5.
X_I, T, S = torch.tensor([[0.5]], dtype=torch.float64), 0.75, 0.5
V = 0.4 * X_I - 1
X_S = X_I + (S - T) * V
V_REAL = Teacher()(X_S, torch.tensor([S], dtype=torch.float64))
V_FAKE = velocity_of(0.475, 0.46828125, S, X_S, torch.tensor([[S]], dtype=torch.float64))


def test_the_exact_gradient_of_a_step() -> None:
    assert ((T - S) * direction(X_S, S, V_REAL, V_FAKE)).item() == pytest.approx(-0.03987988, abs=5e-9)


def test_it_is_the_difference_of_scores() -> None:
    difference = score(X_S, S, V_FAKE) - score(X_S, S, V_REAL)
    assert direction(X_S, S, V_REAL, V_FAKE).item() == pytest.approx(-difference.item())


def test_the_normalised_direction() -> None:
    clean = x0(X_I, T, V)
    by_clean = (x0(X_S, S, V_FAKE) - x0(X_S, S, V_REAL)) / (clean - x0(X_S, S, V_REAL)).abs()
    assert by_clean.item() == pytest.approx(3.98798799, abs=5e-9)  # DMD's, in the clean picture
    assert direction(X_S, S, V_REAL, V_FAKE, clean, floor=1e-6).item() == pytest.approx(-3.98798799, abs=5e-9)
    # with the floor of .1, above |v - v_real| = .04, the same difference is divided by .1
    assert direction(X_S, S, V_REAL, V_FAKE, clean).item() == pytest.approx((V_FAKE - V_REAL).item() / 0.1)


def test_the_fake_of_predictions_points_the_wrong_way() -> None:
    """The clean prediction's law, re-noised: N(0.7 * .25 + 1 * .75 ..., ...) is not the law of the state, and the sign turns."""
    mean, variance = (1 - T * 0.4) * 0.25 + T, (1 - T * 0.4) ** 2 * 0.578125
    v_fake = velocity_of(mean, variance, 0.0, X_S, torch.tensor([[S]], dtype=torch.float64))
    assert v_fake.item() == pytest.approx(-0.65971022, abs=5e-9)
    assert ((T - S) * direction(X_S, S, V_REAL, v_fake)).item() == pytest.approx(0.02507245, abs=5e-9)


def test_a_direction_at_level_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="0/0 at level 0"):
        direction(X_S, torch.tensor([0.0]), V_REAL, V_FAKE)


def test_directions_are_computed_in_fp32_or_better() -> None:
    half = [tensor.to(torch.bfloat16) for tensor in (X_S, V_REAL, V_FAKE)]
    assert direction(half[0], S, half[1], half[2]).dtype == torch.float32


def test_each_sample_is_normalised_by_its_own_size() -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real, fake, clean = (torch.randn_like(x) for _ in range(3))
    both = direction(x, torch.tensor([0.5, 0.9]), real, fake, clean)
    assert torch.allclose(both[1:], direction(x[1:], 0.9, real[1:], fake[1:], clean[1:]), rtol=1e-6)


def test_the_surrogate_has_the_gradient() -> None:
    v = torch.randn(4, 3, requires_grad=True)
    gradient = torch.randn(4, 3)
    surrogate(v, gradient).backward()
    assert v.grad is not None
    assert torch.allclose(v.grad, gradient / 12)


def test_means_of_the_estimator() -> None:
    """E[g x] and E[g] are the derivatives of KL in slope and intercept: -.13347222 and .02 by finite differences.

    1e6 samples; g x has standard deviation about .4, so a mean is within 4 x .4 / 1000 = .0016.
    """
    noise = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x_i = 0.25 + math.sqrt(0.578125) * noise
    x_s = x_i + (S - T) * (0.4 * x_i - 1)
    t = torch.full((len(x_s), 1), S, dtype=torch.float64)
    g = (T - S) * direction(x_s, S, Teacher()(x_s, t[:, 0]), velocity_of(0.475, 0.46828125, S, x_s, t))
    assert (g * x_i).mean().item() == pytest.approx(-0.13347222, abs=1.6e-3)
    assert g.mean().item() == pytest.approx(0.02, abs=1.6e-3)


@pytest.mark.parametrize("method", ["shared", "segment", "renoise"])
def test_the_reach_is_the_derivative(method: str) -> None:
    """``reach`` against finite differences of the compared state in the student's velocity."""
    before, after = torch.tensor([0.9, 0.5], dtype=torch.float64), torch.tensor([0.75, 0.0], dtype=torch.float64)
    x, v, noise = (torch.randn(2, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(3))
    uniform = torch.tensor([0.3, 0.6], dtype=torch.float64)
    here, moved = (compare(method, x, before, after, v + delta, noise, uniform) for delta in (0, 1e-6))
    assert torch.allclose((here.x - moved.x) / 1e-6, here.reach[:, None].expand(2, 3), atol=1e-8)
    assert ((here.level > 0) & (here.reach >= 0)).all()


LEVELS = (1.0, 0.75, 0.5, 0.0)
TEACHERS = (1.05914, -1.26479)  # slope and intercept of the step .75 -> .5 that end in the teacher's N(.5, .3125)


def trained(compared: str, fake: str, *, normalise: bool = False) -> Linear:
    """The step .75 -> .5 of a student whose other steps are exact, trained by the public interface with the exact fake model."""
    slopes, intercepts = [(1 - math.sqrt(law(0.75)[1])) / 0.25, 0.4, (1 - math.sqrt(0.8)) / 0.5], [-1.0, -1.0, math.sqrt(0.8) - 2]
    student = Linear(LEVELS, slopes, intercepts)
    stage = MatchStage(
        name="step", steps=400, levels=LEVELS, only=(1,), compare=compared, fake=fake, fake_steps=0, normalise=normalise,
        optimizer=Optimizer(learning_rate=0.05, decay="cosine", clip=0.0),
    )  # fmt: skip

    def batch(step: int) -> Batch:
        half = torch.randn(128, 1, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return Batch(noise=torch.cat([half, -half]))  # antithetic: its mean is exactly 0

    run_stage(stage, Networks(student, Teacher(), ExactFake(student, fake, step=1)), batch, seed=0)
    return student


#: The batch's noise moves an iterate by about lr / sqrt(256); the cosine takes most of it: seen within .006.
NEAR = 0.02


@pytest.mark.parametrize("fake", ["transition", "finals"])
@pytest.mark.parametrize("compared", ["shared", "segment", "renoise"])
def test_pairs_that_end_at_the_teacher(compared: str, fake: str) -> None:
    """With the other steps exact, these fakes agree with the teacher exactly where the state has the teacher's law."""
    student = trained(compared, fake)
    assert (student.slope[1].item(), student.intercept[1].item()) == pytest.approx(TEACHERS, abs=NEAR)
    assert student.laws()[2] == pytest.approx(law(0.5), abs=NEAR)


def test_shared_levels_with_the_fake_of_predictions_are_biased() -> None:
    """45 % too much variance, as in closed form: slope .45654, intercept -1.11413, variance .45369."""
    student = trained("shared", "predictions")
    assert (student.slope[1].item(), student.intercept[1].item()) == pytest.approx((0.45654, -1.11413), abs=NEAR)
    assert student.laws()[2][1] == pytest.approx(0.45369, abs=NEAR)


def test_segment_noise_with_the_fake_of_predictions_is_biased() -> None:
    """At the fixed point the gradient's mean over states and levels is 0; quadrature finds it without any of our loop."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    x_i = 0.25 + math.sqrt(law(0.75)[1]) * torch.from_numpy(nodes)
    x, noise = (grid.flatten()[:, None] for grid in torch.meshgrid(x_i, torch.from_numpy(nodes), indexing="ij"))
    probabilities = torch.from_numpy(np.outer(weights, weights).ravel() / weights.sum() ** 2)[:, None]

    def mean_gradient(parameters: np.ndarray) -> list[float]:
        slope, intercept = parameters
        factor = 1 - 0.75 * slope
        mean, variance = factor * 0.25 - 0.75 * intercept, factor**2 * law(0.75)[1]
        x_s = x - 0.25 * (slope * x + intercept)
        total = torch.zeros(2, dtype=torch.float64)
        for level in 0.5 + 0.25 * (np.arange(20) + 0.5) / 20:
            t = torch.full_like(x, level)
            a = (1 - level) / 0.5
            x_t = a * x_s + math.sqrt(level**2 - a**2 * 0.25) * noise
            g = a * (1 - t) / t * (velocity_of(mean, variance, 0.0, x_t, t) - Teacher()(x_t, t[:, 0]))
            total += torch.stack([(probabilities * g * x).sum(), (probabilities * g).sum()])
        return total.tolist()

    expected = optimize.root(mean_gradient, [0.5, -1.1]).x
    student = trained("segment", "predictions")
    assert (student.slope[1].item(), student.intercept[1].item()) == pytest.approx(tuple(expected), abs=NEAR)
    assert student.laws()[2][1] > law(0.5)[1] + 0.05


def test_re_noised_predictions_have_the_data_s_law_and_their_states_have_not() -> None:
    """DMD2 asks every step to be a generator of its own: each clean prediction is right, the state on the way is not."""
    student = trained("renoise", "predictions")
    assert student.clean_law(1) == pytest.approx((1.0, 0.25), abs=NEAR)
    assert abs(student.laws()[2][1] - law(0.5)[1]) > 0.05


def test_normalised_directions_have_the_same_fixed_point() -> None:
    student = trained("shared", "transition", normalise=True)
    assert student.laws()[2] == pytest.approx(law(0.5), abs=NEAR)
