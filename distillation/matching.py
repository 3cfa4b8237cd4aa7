r"""Distribution matching: which way the student's velocity must go for its pictures to be distributed as the teacher's.

A step of the student goes from its state ``x_i`` at level ``t_i`` to ``x_s = x_i + (s - t_i) v`` at level ``s = t_{i+1}``. The
gradient of KL(student || teacher) in a state is the difference of two scores, the student's own (of a *fake* model that is fitted
to it, :mod:`distillation.fake`) and the teacher's (*real*). Where the two are compared is the method (:data:`Compare`):

====================  ==============================================================  =======================================
``compare``           state that both see                                             source
====================  ==============================================================  =======================================
``shared``            ``x_s`` itself, on the student's own trajectory                 timestep sharing, SD3.5-Flash 2509.21318
``segment``           ``x_s`` noised on to a level in ``(s, t_i]``                    TDM 2503.06674
``renoise``           the clean prediction noised to any level                        DMD2 2405.14867
====================  ==============================================================  =======================================

At ``s = 0`` the shared comparison is 0/0 (the last step ends in clean pictures, whose score is undefined); it is then made as in
``segment``: on fresh noise in ``(0, t_i]``. That is this project's choice; the paper's is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distillation.flow import expand, transit, transition, x0

__all__ = ["Compare", "Comparison", "compare", "direction", "place", "surrogate"]

Compare = Literal["shared", "segment", "renoise"]

#: Levels of re-noised comparisons, as in DMD2: at the ends the scores say nothing or cannot be told apart.
LOWEST, HIGHEST = 0.02, 0.98
#: Least size of what a direction is divided by, in units of velocity (CDM clamps at .1).
FLOOR = 0.1


@dataclass(frozen=True)
class Comparison:
    """A state that teacher and fake model both see.

    Attributes:
        x: ``[batch, ...]``, no gradient flows into it.
        level: of the state, ``[batch]``.
        reach: minus the derivative of ``x`` by the student's velocity, ``[batch]``, never below 0.
    """

    x: Tensor
    level: Tensor
    reach: Tensor


def compare(method: Compare, x_i: Tensor, t_i: Tensor, s: Tensor, v: Tensor, noise: Tensor, uniform: Tensor) -> Comparison:
    """Where teacher and fake model are compared for a step of the student.

    Args:
        method: one of :data:`Compare`.
        x_i: the student's state before the step, ``[batch, ...]``.
        t_i: its level, ``[batch]``.
        s: the level after the step, ``[batch]``, below ``t_i``.
        v: the student's velocity at ``x_i``.
        noise: fresh, of the shape of ``x_i``.
        uniform: fresh, in [0, 1), ``[batch]``: chooses the level.
    """
    with torch.no_grad():
        if method == "renoise":
            level = LOWEST + (HIGHEST - LOWEST) * uniform
            reach = t_i * (1 - level)
        else:
            fresh = (t_i - (t_i - s) * uniform).clamp(max=HIGHEST).maximum(s)  # in (s, t_i]
            level = fresh if method == "segment" else torch.where(s > 0, s, fresh)
            reach = (t_i - s) * transition(s, level)[0]
        return Comparison(place(method, x_i, t_i, s, v, level, noise), level, reach)


def place(method: Compare, x_i: Tensor, t_i: Tensor, s: Tensor, v: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """The state that is compared, at a given level, as a differentiable function of the student's velocity."""
    if method == "renoise":
        return transit(x0(x_i, t_i, v), torch.zeros_like(level), level, noise)
    return transit(x_i + expand(s - t_i, x_i) * v, s, level, noise)


def direction(
    x_s: Tensor, s: Tensor | float, v_real: Tensor, v_fake: Tensor, normalise: Tensor | None = None, floor: float = FLOOR
) -> Tensor:
    r"""The gradient of KL(student \|\| teacher) in a velocity that led to ``x_s``, per unit of the step's length.

    Without normalisation, ``S_fake - S_real`` with the sign of a velocity (a step goes down in level: a velocity that grows takes
    ``x_s`` down)::

        g = ((1 - s) / s) (v_fake - v_real)          times (t_i - s): the exact gradient in v

    With it, as DMD divides (``x0_fake - x0_real`` by the mean of ``|x0_student - x0_real|`` over a sample's elements), but in
    units of velocity: s cancels, the size is the same at every level and nothing is divided by a small s::

        g = (v_fake - v_real) / max(mean |x0_student - x0_real| / s, floor)

    On the shared level ``x0_student - x0_real = s (v_real - v_student)``, so the denominator is ``mean |v_student - v_real|``.

    Args:
        x_s: the state that both models saw, ``[batch, ...]``.
        s: its level, ``[batch]`` or a number, above 0.
        v_real: the teacher's velocity there (with guidance, if that is wanted: :mod:`distillation.objectives.guidance`).
        v_fake: the fake model's.
        normalise: the student's clean prediction ``x0 = x_i - t_i v`` to normalise by, or None for the exact gradient.
        floor: least denominator, in units of velocity.

    Returns:
        A direction of the shape of ``x_s``, in float32 or better, that a velocity is to be moved *against*.

    Raises:
        ValueError: s is 0, where the direction is 0/0.
    """
    if not bool((torch.as_tensor(s) > 0).all()):
        raise ValueError("the direction is 0/0 at level 0: compare the last step on fresh noise (compare() does)")
    wide = torch.promote_types(x_s.dtype, torch.float32)
    x_s, v_real, v_fake = x_s.to(wide), v_real.to(wide), v_fake.to(wide)
    level = expand(s, x_s)
    if normalise is None:
        return (1 - level) / level * (v_fake - v_real)
    distance = (normalise.to(wide) - x0(x_s, s, v_real)).abs() / level
    return (v_fake - v_real) / distance.flatten(1).mean(1).clamp(min=floor).reshape(-1, *[1] * (x_s.ndim - 1))


def surrogate(v: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient in ``v`` is the given one over the number of elements: ``1/2 mean (v - stop(v - g))^2``."""
    target = (v.detach() - gradient).detach()
    return 0.5 * (v - target).square().mean()
