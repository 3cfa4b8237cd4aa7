"""How Apple's Swift client comes nearest to a student's schedule, and how near its pictures come.

The client's ``DiscreteFlowScheduler`` (apple/ml-stable-diffusion e12202c) spaces its steps evenly between the shifted ends of the
training schedule, and shifts them again. That is diffusers' own grid for as many steps. Of a grid that ends higher, as few-step
students have, one step more comes near: its last evaluation, near zero, changes little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import VAE_SCALE, GraphOptions
from exporters.layouts.swift_client import T5_TOKENS
from exporters.reference.decibels import EQUAL_DB, psnr_db
from exporters.student.student import Student

TRAIN_STEPS = 1000
SHIFTS = np.arange(100, 1201) / 100
FAR = 10.0  # a schedule whose sigmas are this many times further off than another's is not drawn with
SIDES = ((256, 2), (128, 1))  # pixels of the longer side at most, and pictures: the first that is cheap enough
MOST_OPERATIONS = 2e13  # two minutes of two cores at 150 GFLOP/s


@dataclass(frozen=True)
class ClientSchedule:
    """A schedule of the client.

    Attributes:
        steps: its ``stepCount``.
        shift: its ``schedulerTimestepShift``.
        sigmas: the noise levels that it evaluates at.
        error: of the sigma that is furthest from the student's.
        psnr_db: of pictures drawn so, the worst, against those of the student's own schedule; none where none were drawn.
    """

    steps: int
    shift: float
    sigmas: tuple[float, ...]
    error: float
    psnr_db: float | None = None


def client_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """The noise levels that the client evaluates at.

    Args:
        steps: the client's ``stepCount``, 2 or more.
        shift: its ``schedulerTimestepShift``.

    >>> [round(sigma, 4) for sigma in client_sigmas(5, 3.0)]
    [1.0, 0.9004, 0.7511, 0.503, 0.0089]
    """

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return sigma * shift / (1 + (shift - 1) * sigma)

    ends = shifted(np.array([1.0, 1.0 / TRAIN_STEPS]))
    return tuple(shifted(np.linspace(float(ends[0]), float(ends[1]), steps)).tolist())


def nearest_schedules(sigmas: Sequence[float], own_shift: float = 1.0) -> list[ClientSchedule]:
    """The nearest schedule of as many steps as there are, and of one more; the nearer first.

    Args:
        sigmas: the student's, one more than there are steps, the last 0.
        own_shift: the scheduler's shift, tried beside shifts of two digits after the point.

    >>> [(s.steps, s.shift, round(s.error, 3)) for s in nearest_schedules([1.0, 0.9, 0.75, 0.5, 0.0])]
    [(5, 2.97, 0.001), (4, 12.0, 0.374)]
    >>> [(s.steps, s.shift, round(s.error, 3)) for s in nearest_schedules([1.0, 0.858, 0.602, 0.009, 0.0])]
    [(4, 3.0, 0.0), (5, 1.0, 0.242)]
    """
    wanted = np.asarray(sigmas[:-1])
    nearest = []
    for steps in (len(wanted), len(wanted) + 1):
        if steps < 2:  # the client's spacing of one step divides by zero
            continue
        shifts = [own_shift, *SHIFTS.tolist()]
        candidates = [client_sigmas(steps, shift) for shift in shifts]
        errors = [float(np.abs(np.asarray(one[: len(wanted)]) - wanted).max()) for one in candidates]
        best = int(np.argmin(errors))
        nearest.append(ClientSchedule(steps, shifts[best], candidates[best], errors[best]))
    return sorted(nearest, key=lambda schedule: schedule.error)


def client_schedule(student: Student, options: GraphOptions, sampling: Sampling, costly: bool = False) -> ClientSchedule:
    """The client's schedule whose pictures come nearest to those of the student's own.

    They are drawn in torch, with weights streamed, small: at most 256 px. A student for which even that takes minutes is judged
    by its sigmas alone, unless it may be costly.

    Args:
        student: the student.
        options: the bundle's.
        sampling: the student's own schedule.
        costly: draw whatever it takes.
    """
    nearest = nearest_schedules(sampling.sigmas, float(student.configs["scheduler"].get("shift") or 1.0))
    drawn = [schedule for schedule in nearest if schedule.error <= FAR * nearest[0].error]
    evaluations = len(sampling.timesteps) + sum(schedule.steps for schedule in drawn)
    affordable = [
        (side, count) for side, count in SIDES if _operations(student, options, side) * count * evaluations <= MOST_OPERATIONS
    ]
    if not affordable and not costly:
        return nearest[0]
    side, count = affordable[0] if affordable else SIDES[-1]
    measured = _measured(student, _drawing(student, options, side), sampling, drawn, count)
    return max(measured, key=lambda schedule: schedule.psnr_db or 0.0)  # of equals the nearer


def _drawing(student: Student, options: GraphOptions, side: int) -> GraphOptions:
    """The native graphs of a bundle of this layout, no larger than ``side``."""
    step = VAE_SCALE * int(student.configs["transformer"]["patch_size"])
    height, width = (max(step, min(size, side) // step * step) for size in (options.height, options.width))
    return replace(options, layout="native", height=height, width=width)


def _operations(student: Student, options: GraphOptions, side: int) -> float:
    """The operations of one evaluation of the transformer, for one picture: two for each weight and token."""
    drawing = _drawing(student, options, side)
    step = VAE_SCALE * int(student.configs["transformer"]["patch_size"])
    tokens = drawing.height // step * (drawing.width // step) + options.clip_tokens + (T5_TOKENS if options.keep_t5 else 1)
    return 2.0 * tokens * sum(weight.elements for weight in student.weights["transformer"].values())


def _measured(
    student: Student, options: GraphOptions, sampling: Sampling, schedules: Sequence[ClientSchedule], count: int
) -> list[ClientSchedule]:
    """Schedules with the PSNR of their pictures."""
    import torch

    from exporters.choices import PROMPTS
    from exporters.streamed.pipeline import TorchPipeline

    def pipeline(schedule: Sampling) -> TorchPipeline:
        return TorchPipeline(student, replace(options, timesteps=schedule.timesteps), schedule)

    with torch.no_grad():
        own = pipeline(sampling)
        encoded = [own.encode(prompt) for prompt in PROMPTS[:count]]
        states, noise = torch.cat([text for text, _ in encoded]), own.noise(count, 0)[0]

        def draw(drawer: TorchPipeline) -> np.ndarray:
            modulations = torch.stack([drawer.modulations(pooled) for _, pooled in encoded], dim=1)
            pictures: np.ndarray = own.decode(drawer.sample((states, modulations), noise)).numpy()
            return pictures

        wanted, measured = draw(own), []
        for schedule in schedules:
            timesteps = tuple(TRAIN_STEPS * sigma for sigma in schedule.sigmas)
            got = draw(pipeline(Sampling("euler", (*schedule.sigmas, 0.0), timesteps)))
            worst = min(psnr_db(a, b) for a, b in zip(wanted, got, strict=True))
            measured.append(replace(schedule, psnr_db=min(worst, EQUAL_DB)))
    return measured
