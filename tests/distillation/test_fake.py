"""The fake model's loss: its minimum, its forms, its bounds."""

from __future__ import annotations

import pytest
import torch

from distillation import fake
from distillation.flow import diffuse, transition
from tests.distillation.gaussian import velocity_of


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_minimum_is_the_score_of_the_noised_law() -> None:
    """Among velocities linear in x, for the law N(.475, .46828125) at .5 seen at .55: v(.7) = -.86068778, E[n | .7] = .17978440.

    Least squares on 200,000 samples: the loss is a quadratic in slope and intercept, which three evaluations of its gradient
    give.
    """
    x_s, n = 0.475 + 0.46828125**0.5 * drawn(0, 200_000, 1), drawn(1, 200_000, 1)
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def gradient(at: list[float]) -> torch.Tensor:
        with torch.no_grad():
            parameters.copy_(torch.tensor(at))
        loss = fake.loss(lambda x, t, cond: parameters[0] * x + parameters[1], x_s, 0.5, torch.full((200_000,), 0.55), n)
        return torch.autograd.grad(loss, parameters)[0]

    origin = gradient([0, 0])
    hessian = torch.stack([gradient([1, 0]) - origin, gradient([0, 1]) - origin], 1)
    slope, intercept = torch.linalg.solve(hessian, -origin).tolist()
    v = slope * 0.7 + intercept
    # errors of slope and intercept: 1 / (sqrt(n) sigma/t (1 - t)) = .0087 each at most, and the place .7 is near the mean .4275
    assert v == pytest.approx(-0.86068778, abs=0.03)
    _, sigma = transition(0.5, 0.55)
    assert float(sigma) / 0.55 * (0.7 + 0.45 * v) == pytest.approx(0.17978440, abs=0.01)
    # the exact velocity does no worse than the fitted one by more than the fit's own optimism
    exact = fake.loss(
        lambda x, t, cond: velocity_of(0.475, 0.46828125, 0.5, x, t[:, None]), x_s, 0.5, torch.full((200_000,), 0.55), n
    )
    fitted = fake.loss(lambda x, t, cond: slope * x + intercept, x_s, 0.5, torch.full((200_000,), 0.55), n)
    assert fitted <= exact <= fitted * (1 + 4 * 2 / 200_000**0.5)


def test_from_clean_data_it_is_the_flow_loss_weighted() -> None:
    """At s = 0: || x_t + (1 - t) v - n ||^2 = (1 - t)^2 || v - (n - x0) ||^2."""
    clean, n, t = drawn(2, 5, 4, 3), drawn(3, 5, 4, 3), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.98], dtype=torch.float64)
    v = drawn(4, 5, 4, 3)
    plain = ((1 - t)[:, None, None] * (v - (n - clean))).square().mean()
    assert fake.loss(lambda x, level, cond: v, clean, 0.0, t, n).item() == pytest.approx(plain.item())
    assert torch.allclose(diffuse(clean, t, n), (1 - t)[:, None, None] * clean + t[:, None, None] * n)


@pytest.mark.parametrize(("s", "t"), [(0.0, 1e-4), (0.0, 0.98), (0.9, 0.9001), (0.9, 1.0), (0.5, 0.75)])
def test_it_is_bounded_at_both_ends(s: float, t: float) -> None:
    """For velocities of size 1 the estimate is of size 1: nothing is divided by sigma or by 1 - t."""
    x, n = drawn(5, 64, 8), drawn(6, 64, 8)
    assert fake.loss(lambda x, level, cond: torch.zeros_like(x), x, s, torch.full((64,), t), n) < 10


def test_what_the_model_is_told() -> None:
    seen = []

    def model(x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        seen.append((x.shape, t.shape, cond))
        return x

    fake.loss(model, drawn(0, 3, 2), 0.5, torch.full((3,), 0.6), drawn(1, 3, 2), cond="told")
    fake.loss(model, drawn(0, 3, 2), 0.5, 0.6, drawn(1, 3, 2))
    assert seen == [((3, 2), (3,), "told"), ((3, 2), (3,), None)]
