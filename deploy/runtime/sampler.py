"""Flow-matching samplers in numpy: pure functions, noise injected.

The first two follow diffusers' ``FlowMatchEulerDiscreteScheduler.step``; the third takes what its multistep schedulers make of
unit vectors. A rectified flow's sample at noise level sigma is
``(1 - sigma) x0 + sigma noise`` and the network predicts the velocity ``noise - x0`` (Liu et al. 2022, arXiv 2209.03003).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Step = Callable[[np.ndarray, int], np.ndarray]
"""One step: the latents before it and its index to the latents after it."""
Velocity = Callable[[np.ndarray, int], np.ndarray]
"""The network: latents and the step's index to the predicted velocity."""
OnStep = Callable[[int, np.ndarray], None]


def sample(step: Step, latents: np.ndarray, steps: Sequence[int], on_step: OnStep | None = None) -> np.ndarray:
    """Make steps one after another.

    Args:
        step: makes one.
        latents: before the first, fp32.
        steps: their indices in the schedule.
        on_step: called with how many were made before it, and the latents after it.
    """
    for made, i in enumerate(steps):
        latents = step(latents, i)
        if on_step:
            on_step(made, latents)
    return latents


def euler(velocity: Velocity, sigmas: Sequence[float]) -> Step:
    """Euler steps along the flow: ``x += (sigma_next - sigma) v``.

    Args:
        velocity: the network.
        sigmas: one more than there are steps.

    >>> sample(euler(lambda x, i: np.ones_like(x), [1.0, 0.5, 0.0]), np.zeros(1, np.float32), range(2))
    array([-1.], dtype=float32)
    """
    levels = np.asarray(sigmas, np.float32)
    return lambda latents, i: latents + (levels[i + 1] - levels[i]) * velocity(latents, i)


def renoise(
    velocity: Velocity,
    sigmas: Sequence[float],
    noise: Callable[[int], np.ndarray],
    enlarged: Callable[[np.ndarray, int], np.ndarray] = lambda clean, step: clean,
) -> Step:
    """Predict the clean latents and noise them again: ``x0 = x - sigma v``, ``x = (1 - sigma_next) x0 + sigma_next noise``.

    Args:
        velocity: the network.
        sigmas: one more than there are steps.
        noise: fresh standard normal noise for each step, shaped like the latents after it.
        enlarged: clean latents as large as they are after a step.
    """
    levels = np.asarray(sigmas, np.float32)
    return lambda latents, i: noised(enlarged(latents - levels[i] * velocity(latents, i), i), noise(i), levels[i + 1])


def combined(velocity: Velocity, sigmas: Sequence[float], combinations: Sequence[Sequence[float]], start: np.ndarray) -> Step:
    """Each step's latents as a combination of the first latents and of all clean latents so far, ``x0 = x - sigma v``.

    Args:
        velocity: the network.
        sigmas: one more than there are steps.
        combinations: for each step, of the first latents and of each step's clean latents.
        start: the first latents; steps are made in order, from the first one.

    >>> start = np.zeros(1, np.float32)
    >>> step = combined(lambda x, i: np.ones_like(x), [1.0, 0.5, 0.0], [(0.5, 0.5), (0.0, 0.0, 1.0)], start)
    >>> sample(step, start, range(2))
    array([-1.], dtype=float32)
    """
    levels, terms = np.asarray(sigmas, np.float32), [start]

    def step(latents: np.ndarray, i: int) -> np.ndarray:
        terms.append(latents - levels[i] * velocity(latents, i))
        weighted = (np.float32(weight) * term for weight, term in zip(combinations[i], terms, strict=True))
        return sum(weighted, np.zeros_like(latents))

    return step


def inpainted(step: Step, sigmas: Sequence[float], clean: np.ndarray, noise: np.ndarray, mask: np.ndarray) -> Step:
    """Steps after each of which what is not to change is as it was, at the step's noise level.

    Args:
        step: what draws.
        sigmas: one more than there are steps.
        clean: latents of what is drawn upon.
        noise: what it is noised with, one and the same in all steps.
        mask: 1 where it is drawn anew, 0 where it stays.
    """
    levels = np.asarray(sigmas, np.float32)
    return lambda latents, i: (1 - mask) * noised(clean, noise, levels[i + 1]) + mask * step(latents, i)


def noised(clean: np.ndarray, noise: np.ndarray, sigma: np.float32) -> np.ndarray:
    """A sample of the flow at a noise level, fp32."""
    return (1 - sigma) * clean + sigma * noise
