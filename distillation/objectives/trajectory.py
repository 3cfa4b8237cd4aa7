"""Trajectory guidance: the student's steps are regressed on the teacher's path between the student's levels.

The teacher's states ``X_0 ... X_K`` at the student's levels are integrated with guidance and many substeps; the student learns
each segment's mean velocity::

    loss = mean || v(X_i, t_i) - (X_{i+1} - X_i) / (t_{i+1} - t_i) ||^2

It is the warm start that timestep sharing needs (without it the shared comparison is made far from anything that the teacher
knows), and a small weight of it during matching keeps diversity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distillation.flow import Velocity, euler, expand
from distillation.objectives.guidance import guided

__all__ = ["loss", "states", "target", "teacher_velocity"]


def teacher_velocity(teacher: Velocity, uncond: Any, w: float) -> Velocity:
    """The teacher with guidance as one network: both forward passes in it, one where ``w`` is 1."""
    if w == 1:
        return teacher
    return lambda x, t, cond: guided(teacher(x, t, cond), teacher(x, t, uncond), w)


@torch.no_grad()
def states(
    teacher: Velocity,
    start: Tensor,
    substeps: Sequence[Sequence[float]],
    cond: Any,
    on_segment: Callable[[], None] = lambda: None,
) -> Tensor:
    """The teacher's states at the student's levels.

    Args:
        teacher: with guidance (:func:`teacher_velocity`).
        start: noise, ``[batch, ...]``.
        substeps: of each segment (:func:`distillation.levels.substeps`).
        cond: the teacher's.
        on_segment: called after each.

    Returns:
        ``[batch, steps + 1, ...]``.
    """
    kept = [start]
    for part in substeps:
        kept.append(euler(teacher, kept[-1], part, cond)[-1])
        on_segment()
    return torch.stack(kept, 1)


def target(x_i: Tensor, x_next: Tensor, t_i: Tensor, s: Tensor) -> Tensor:
    """A segment's mean velocity, ``(X_{i+1} - X_i) / (t_{i+1} - t_i)``."""
    return (x_next - x_i) / expand(s - t_i, x_i)


def loss(student: Velocity, x_i: Tensor, x_next: Tensor, t_i: Tensor, s: Tensor, cond: Any) -> Tensor:
    """Trajectory guidance for one segment a sample.

    Args:
        student: the network that learns.
        x_i: the teacher's states before the segment, ``[batch, ...]``.
        x_next: and after it.
        t_i: levels before, ``[batch]``.
        s: levels after, ``[batch]``.
        cond: the student's.
    """
    return (student(x_i, t_i, cond) - target(x_i, x_next, t_i, s)).square().mean()
