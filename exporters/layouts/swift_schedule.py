"""What Apple's Swift client tells a student's transformer, step by step, and what the transformer makes of it.

The client's ``DiscreteFlowScheduler`` (apple/ml-stable-diffusion e12202c) has one formula: noise levels evenly between the
shifted ends of the training schedule, shifted again. It is diffusers' own grid for as many steps, and no few-step student's. So
the graph takes each of the client's levels for the step that it is: it computes at the student's own level, and scales the
velocity so that the client's step, from its level to its next, moves the latents as far as the student's own. What the client
holds after each step is what the student's sampler holds there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporters.errors import Complaint, ExportError

TRAIN_STEPS = 1000
LEAST_STEPS = 2  # the client's spacing of one step divides by zero
TOLERANCE = 1.0  # timesteps: to fp16, half of one is the same number
SHIFT = 3.0  # the client's own default


@dataclass(frozen=True)
class ClientSchedule:
    """How the client is to be told to draw, and what that makes of its steps.

    Attributes:
        steps: its ``stepCount``.
        shift: its ``schedulerTimestepShift``.
        timesteps: what it tells the transformer at each step, 0 to 1000.
        scales: the student's step over the client's, for each; 0 of a step that the student has not.
    """

    steps: int
    shift: float
    timesteps: tuple[float, ...]
    scales: tuple[float, ...]

    @property
    def tolerance(self) -> float:
        """How far from one of its timesteps the transformer still takes a number for it."""
        return min(TOLERANCE, 0.4 * _apart(self.timesteps))


def client_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """The noise levels that the client evaluates at.

    Args:
        steps: the client's ``stepCount``, 2 or more.
        shift: its ``schedulerTimestepShift``.

    >>> [round(sigma, 4) for sigma in client_sigmas(4, 3.0)]
    [1.0, 0.8577, 0.6022, 0.0089]
    """

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return sigma * shift / (1 + (shift - 1) * sigma)

    ends = shifted(np.array([1.0, 1.0 / TRAIN_STEPS]))
    return tuple(shifted(np.linspace(float(ends[0]), float(ends[1]), steps)).tolist())


def client_schedule(sigmas: Sequence[float], shift: float | None) -> ClientSchedule:
    """The client's schedule of as many steps as the student's.

    Args:
        sigmas: the student's own, one more than there are steps, the last 0.
        shift: its scheduler's; by default the client's own.

    Raises:
        ExportError: so many steps that the client's levels cannot be told apart.

    >>> [round(scale, 3) for scale in client_schedule((1.0, 0.9, 0.75, 0.5, 0.0), 3.0).scales]
    [0.703, 0.587, 0.421, 56.0]
    """
    own = [a - b for a, b in itertools.pairwise(sigmas)]
    steps, shift = max(len(own), LEAST_STEPS), shift or SHIFT
    levels = client_sigmas(steps, shift)
    client = [a - b for a, b in itertools.pairwise((*levels, 0.0))]
    timesteps = tuple(TRAIN_STEPS * level for level in levels)
    if (apart := _apart(timesteps)) <= TOLERANCE:
        problem = "the Swift client's levels lie too close to be told apart"
        complaint = Complaint("steps", problem, f"more than {TOLERANCE:g} of {TRAIN_STEPS} between them", f"{apart:.2g}")
        raise ExportError("This student cannot be drawn by the layout swift.", [complaint], "fewer steps, or --layout native")
    scales = [mine / theirs for mine, theirs in zip(own, client, strict=False)] + [0.0] * (steps - len(own))
    return ClientSchedule(steps, shift, timesteps, tuple(scales))


def _apart(timesteps: Sequence[float]) -> float:
    """How near the nearest two are."""
    return min(a - b for a, b in itertools.pairwise(timesteps))
