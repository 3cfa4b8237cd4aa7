"""Flow-matching samplers in numpy: pure functions, noise injected.

The first two follow diffusers' ``FlowMatchEulerDiscreteScheduler.step``; the third takes what its multistep schedulers make of
unit vectors. A rectified flow's sample at noise level sigma is
``(1 - sigma) x0 + sigma noise`` and the network predicts the velocity ``noise - x0`` (Liu et al. 2022, arXiv 2209.03003).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Velocity = Callable[[np.ndarray, int], np.ndarray]
OnStep = Callable[[int, np.ndarray], None]


def sample_euler(velocity: Velocity, latents: np.ndarray, sigmas: Sequence[float], on_step: OnStep | None = None) -> np.ndarray:
    """Euler steps along the flow: ``x += (sigma_next - sigma) v``.

    Args:
        velocity: the network: latents and the step's index to the predicted velocity.
        latents: noise at ``sigmas[0]``, fp32.
        sigmas: one more than there are steps.
        on_step: called with the step's index and the latents after it.

    >>> sample_euler(lambda x, i: np.ones_like(x), np.zeros(1, np.float32), [1.0, 0.5, 0.0])
    array([-1.], dtype=float32)
    """
    steps = np.asarray(sigmas, np.float32)
    for i in range(len(sigmas) - 1):
        latents = latents + (steps[i + 1] - steps[i]) * velocity(latents, i)
        if on_step:
            on_step(i, latents)
    return latents


def sample_renoise(
    velocity: Velocity,
    latents: np.ndarray,
    sigmas: Sequence[float],
    noise: Callable[[int], np.ndarray],
    on_step: OnStep | None = None,
    enlarged: Callable[[np.ndarray, int], np.ndarray] = lambda clean, step: clean,
) -> np.ndarray:
    """Predict the clean latents and noise them again: ``x0 = x - sigma v``, ``x = (1 - sigma_next) x0 + sigma_next noise``.

    Args:
        velocity: as in :func:`sample_euler`.
        latents: noise at ``sigmas[0]``, fp32.
        sigmas: one more than there are steps.
        noise: fresh standard normal noise for each step, shaped like the latents after it.
        on_step: as in :func:`sample_euler`.
        enlarged: clean latents as large as they are after a step.
    """
    steps = np.asarray(sigmas, np.float32)
    for i in range(len(sigmas) - 1):
        clean = enlarged(latents - steps[i] * velocity(latents, i), i)
        latents = (1 - steps[i + 1]) * clean + steps[i + 1] * noise(i)
        if on_step:
            on_step(i, latents)
    return latents


def sample_combined(
    velocity: Velocity,
    latents: np.ndarray,
    sigmas: Sequence[float],
    combinations: Sequence[Sequence[float]],
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Each step's latents as a combination of the first latents and of all clean latents so far, ``x0 = x - sigma v``.

    Args:
        velocity: as in :func:`sample_euler`.
        latents: noise at ``sigmas[0]``, fp32.
        sigmas: one more than there are steps.
        combinations: for each step, of the first latents and of each step's clean latents.
        on_step: as in :func:`sample_euler`.

    >>> sample_combined(lambda x, i: np.ones_like(x), np.zeros(1, np.float32), [1.0, 0.5, 0.0], [(0.5, 0.5), (0.0, 0.0, 1.0)])
    array([-1.], dtype=float32)
    """
    steps, terms = np.asarray(sigmas, np.float32), [latents]
    for i, weights in enumerate(combinations):
        terms.append(latents - steps[i] * velocity(latents, i))
        latents = sum((np.float32(weight) * term for weight, term in zip(weights, terms, strict=True)), np.zeros_like(latents))
        if on_step:
            on_step(i, latents)
    return latents
