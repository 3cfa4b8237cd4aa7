"""The world in which everything about a distillation is known: one number, normally distributed.

Data N(1, .25). The law at level t is normal, so are the laws of students that are linear in x at each step, and a linear student
can reproduce the teacher's laws exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

MEAN, VARIANCE = 1.0, 0.25


def velocity_of(mean: float | Tensor, variance: float | Tensor, s: float | Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The exact velocity at level t of the law N(mean, variance) at level s, noised on from there."""
    a = (1 - t) / (1 - s)
    m, spread = a * mean, a**2 * variance + t**2 - a**2 * s**2
    score = -(x - m) / spread
    # at t = 1 the velocity is the score's limit: x - E[x0], with E[x0] = mean of the law over (1 - s)
    return torch.where(t < 1, -(x + t * score) / torch.where(t < 1, 1 - t, torch.ones_like(t)), x - mean / (1 - s))


class Teacher(nn.Module):
    """The exact velocity of the data."""

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return velocity_of(MEAN, VARIANCE, 0.0, x, t.reshape(-1, 1))


class Linear(nn.Module):
    """A student that is linear in x at each of its levels: v = slope x + intercept."""

    def __init__(self, levels: Sequence[float], slopes: Sequence[float], intercepts: Sequence[float]) -> None:
        super().__init__()
        self.levels = levels
        self.slope = nn.Parameter(torch.tensor(slopes, dtype=torch.float64))
        self.intercept = nn.Parameter(torch.tensor(intercepts, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        step = (t[:, None] - torch.tensor(self.levels[:-1], dtype=t.dtype)).abs().argmin(1)
        return self.slope[step, None] * x + self.intercept[step, None]

    def laws(self) -> list[tuple[float, float]]:
        """Mean and variance of the states at each level."""
        mean, variance = 0.0, 1.0
        laws = [(mean, variance)]
        for step, (t, s) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            factor = 1 + (s - t) * self.slope[step].item()
            mean, variance = factor * mean + (s - t) * self.intercept[step].item(), factor**2 * variance
            laws.append((mean, variance))
        return laws

    def clean_law(self, step: int) -> tuple[float, float]:
        """Mean and variance of a step's clean predictions."""
        mean, variance = self.laws()[step]
        factor = 1 - self.levels[step] * self.slope[step].item()
        return factor * mean - self.levels[step] * self.intercept[step].item(), factor**2 * variance


class ExactFake(nn.Module):
    """The best fake model that there can be, for each of the three things that it may be fitted on.

    It is computed from the student's law at every call, in place of being learned.
    """

    def __init__(self, student: Linear, fit: str, step: int = -1) -> None:
        super().__init__()
        self.student, self.fit, self.step = student, fit, step
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        levels, laws, t = self.student.levels, self.student.laws(), t.reshape(-1, 1)
        if self.fit == "finals":
            return velocity_of(*laws[-1], 0.0, x, t)
        if self.fit == "predictions":
            return velocity_of(*self.student.clean_law(self.step), 0.0, x, t)
        out = torch.empty_like(x)
        for step, s in enumerate(levels[1:]):  # the state after each step, noised on within the step's levels
            here = ((t >= s) & ((t < levels[step]) | (t == 1)))[:, 0]  # a level belongs to the step that ends there
            out[here] = velocity_of(*laws[step + 1], s, x[here], t[here])
        return out


def law(t: float) -> tuple[float, float]:
    """Mean and variance of the teacher's marginal at a level."""
    return (1 - t) * MEAN, (1 - t) ** 2 * VARIANCE + t**2
