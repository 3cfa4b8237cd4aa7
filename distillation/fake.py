"""The fake model: a second network that learns the score of what the student draws.

It is fitted by *transition denoising*: the student's own state at level s, noised on to t > s by the forward process (``x_t = a
x_s + sigma n``), tells the score of the student's law at t as ``-n / sigma``. In a form that is bounded at both ends (a target
of unit variance, no 1/sigma, no 1/(1 - t))::

    loss = mean || (sigma / t) (x_t + (1 - t) v(x_t, t)) - n ||^2

At ``s = 0`` this is the ordinary denoising loss of DMD. One function serves all choices of what is noised (:data:`Fit`):

* ``transition``: the state after each step, within that step's levels ``(t_{i+1}, t_i]``. Segments do not overlap, so the level
  tells the step. The only one that is exact for ``shared`` and ``segment`` comparisons; also Phased DMD (2510.27684).
* ``finals``: the student's pictures, at all levels. Exact for them only where the states agree with re-noised pictures.
* ``predictions``: each step's clean prediction, at all levels (DMD2). Exact for ``renoise``; biased for the others.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from distillation.flow import Velocity, expand, transition
from distillation.flow import noise as noise_of

__all__ = ["Fit", "loss"]

Fit = Literal["transition", "finals", "predictions"]


def loss(model: Velocity, x_s: Tensor, s: Tensor | float, t: Tensor | float, noise: Tensor, cond: Any = None) -> Tensor:
    """Transition denoising, as above; its minimum over all functions is the score of the law of ``x_s`` noised on to t.

    Args:
        model: the fake network, ``(x, t, cond) -> v``.
        x_s: the student's states, ``[batch, ...]``, without gradient.
        s: their levels, ``[batch]`` or a number, below t.
        t: the levels to fit at, ``[batch]``.
        noise: fresh, of the shape of ``x_s``.
        cond: what the *student* was told, not the teacher: with T5 dropped where the student's was.

    Returns:
        A scalar.
    """
    a, sigma = transition(s, t)
    x_t = expand(a, x_s) * x_s + expand(sigma, x_s) * noise
    level = expand(t, x_s).expand(len(x_s), *[1] * (x_s.ndim - 1)).flatten()
    estimate = expand(sigma, x_s) / expand(t, x_s) * noise_of(x_t, t, model(x_t, level, cond))
    return (estimate - noise).square().mean()
