"""Rectified flow: one network's velocity as a clean picture, a noise or a score, and noise added to what already has some.

The convention of SD3 and diffusers. With clean data ``x0`` and noise ``n`` of unit variance::

    x_t = (1 - t) x0 + t n        v = n - x0        t in [0, 1], 1 is pure noise

A network is a callable ``(x, t, cond) -> v``: ``x`` is ``[batch, ...]``, ``t`` is ``[batch]``, ``cond`` is whatever the network
takes for its text, and ``v`` has the shape of ``x``. Everything here is exact algebra and keeps the dtype of its arguments.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Velocity", "diffuse", "euler", "expand", "noise", "score", "transit", "transition", "velocity", "x0"]

Velocity = Callable[[Tensor, Tensor, Any], Tensor]


def expand(t: Tensor | float, x: Tensor) -> Tensor:
    """Levels as they multiply ``x``: ``[batch]`` becomes ``[batch, 1, ...]``; a number stays one.

    >>> expand(torch.zeros(3), torch.zeros(3, 2, 2)).shape
    torch.Size([3, 1, 1])
    """
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


def x0(x: Tensor, t: Tensor | float, v: Tensor) -> Tensor:
    """The clean picture that a velocity points at: ``x - t v``.

    >>> x0(torch.tensor([[0.5]]), 0.75, torch.tensor([[-0.8]]))
    tensor([[1.1000]])
    """
    return x - expand(t, x) * v


def noise(x: Tensor, t: Tensor | float, v: Tensor) -> Tensor:
    """The noise that a velocity points from: ``x + (1 - t) v``."""
    return x + (1 - expand(t, x)) * v


def score(x: Tensor, t: Tensor | float, v: Tensor) -> Tensor:
    """The gradient of the log density at level t: ``-(x + (1 - t) v) / t``, minus the expected noise over its size.

    Two velocities at one place differ in score by ``S_a - S_b = ((1 - t) / t) (v_b - v_a)``.
    """
    return -noise(x, t, v) / expand(t, x)


def velocity(x: Tensor, t: Tensor | float, score: Tensor) -> Tensor:
    """The velocity that has a score: ``-(x + t S) / (1 - t)``, the inverse of :func:`score`."""
    t = expand(t, x)
    return -(x + t * score) / (1 - t)


def diffuse(clean: Tensor, t: Tensor | float, noise: Tensor) -> Tensor:
    """Clean data at level t: ``(1 - t) x0 + t n``."""
    t = expand(t, clean)
    return (1 - t) * clean + t * noise


def transition(s: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """How data at level s goes on to a noisier level: ``x_t = a x_s + sigma n`` with fresh noise ``n``.

    ``a = (1 - t) / (1 - s)`` and ``sigma^2 = t^2 - a^2 s^2``, written as ``(t - s) / (1 - s) (t + a s)`` so that it is 0, and
    never below, at ``t = s``. From ``s = 0`` it is the forward process itself: ``a = 1 - t``, ``sigma = t``. Transitions
    compose: s to u to t is s to t.

    Args:
        s: level of the data, in [0, 1).
        t: level to reach, in [s, 1].

    Returns:
        a and sigma, of the shape of the levels, in float64 unless they are tensors of another floating dtype.

    >>> a, sigma = transition(0.5, 0.55)
    >>> round(a.item(), 9), round(sigma.item() ** 2, 9)
    (0.9, 0.1)
    """
    s = s if isinstance(s, Tensor) else torch.tensor(s, dtype=t.dtype if isinstance(t, Tensor) else torch.float64)
    t = t if isinstance(t, Tensor) else torch.tensor(t, dtype=s.dtype)
    if not bool(((s >= 0) & (s <= t) & (t <= 1) & (s < 1)).all()):
        raise ValueError(f"a transition goes from a level in [0, 1) up to one in [s, 1], got s = {s.tolist()}, t = {t.tolist()}")
    a = (1 - t) / (1 - s)
    return a, ((t - s) / (1 - s) * (t + a * s)).sqrt()


def transit(x_s: Tensor, s: Tensor | float, t: Tensor | float, noise: Tensor) -> Tensor:
    """Data at level s taken to level t with fresh noise, ``a x_s + sigma n`` of :func:`transition`."""
    a, sigma = transition(s, t)
    return expand(a, x_s) * x_s + expand(sigma, x_s) * noise


def euler(network: Velocity, x: Tensor, levels: Sequence[float], cond: Any) -> list[Tensor]:
    """The states of plain Euler sampling: at every level from the first to the last, the start included.

    Args:
        network: the velocity.
        x: the state at ``levels[0]``, ``[batch, ...]``.
        levels: falling, for example ``(1, .9, .75, .5, 0)``.
        cond: the network's.
    """
    states = [x]
    for now, after in itertools.pairwise(levels):
        v = network(states[-1], torch.full((len(x),), now, dtype=x.dtype, device=x.device), cond)
        states.append(states[-1] + (after - now) * v)
    return states
