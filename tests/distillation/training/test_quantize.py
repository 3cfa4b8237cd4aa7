"""Quantization in the loop, on a network of one weight of which all is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.stages import Optimizer, QuantizeStage
from distillation.training.quantize import QuantizeStep

LEVELS = (1.0, 0.5, 0.0)


class Constant(nn.Module):
    """A velocity that is its weight, whatever the state; it counts its ways back."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.asked: list[tuple[float, bool]] = []

    def forward(self, x: Tensor, t: Tensor, _: Any) -> Tensor:
        v = self.weight * torch.ones_like(x)
        self.asked.append((float(t[0]), v.requires_grad))
        return v


def stepped(only: tuple[int, ...] = ()) -> tuple[Constant, dict[str, float]]:
    """A step from noise of 1: the unquantized student goes by -1, this one by -2."""
    optimizer = Optimizer(learning_rate=0.0, warmup=0)
    stage = QuantizeStage(name="w4", steps=1, batch=3, levels=LEVELS, only=only, profile="", optimizer=optimizer)
    student = Constant(-2.0)
    teacher = Constant(-1.0).requires_grad_(False)
    step = QuantizeStep(stage, Networks(student, teacher))
    return student, step(Batch(noise=torch.ones(3, 2)), Counter(0, "w4", 0, range(3)), 0)


def test_each_step_leads_from_where_it_is_to_where_the_other_goes() -> None:
    """At level 1 both are at 1 and the other goes to 1.5: a velocity of -1. This one goes to 2; from there to the other's 2 at
    level 0 is a velocity of 0. Errors are 1 and 2: a loss of (1 + 4) / 2, a gradient of -(2 + 4) / 2. It ends at 3."""
    student, record = stepped()
    assert record["loss"] == pytest.approx(2.5)
    assert record["gradient"] == pytest.approx(3.0)
    assert record["latent_db"] == pytest.approx(10 * torch.log10(torch.tensor(4.0)).item())
    assert student.asked == [(1.0, True), (0.5, True)]


def test_steps_that_are_not_trained_are_taken_all_the_same() -> None:
    student, record = stepped(only=(1,))
    assert (record["loss"], record["gradient"]) == (pytest.approx(4.0), pytest.approx(4.0))
    assert student.asked == [(1.0, False), (0.5, True)]
