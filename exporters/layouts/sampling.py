"""The sampler's numbers, computed once by diffusers' own scheduler; a bundle pins them and computes none of them again."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from exporters.choices import Sampler
from exporters.errors import Complaint, ExportError
from exporters.guidance import Guidance, settled_guidance
from exporters.layouts.spec import VAE_SCALE
from exporters.student.configs import MOST_STEPS
from exporters.student.scheduler import reference_scheduler
from exporters.student.student import Student

IDLE = 0.03  # a step that moves less than this share of the way from noise to picture costs as much as one that moves all of it
SHOWN = 12  # steps whose sigmas are written out
BETTER = 1.5  # how much more the smallest step of another grid must move for that grid to be worth a word


@dataclass(frozen=True)
class Sampling:
    """A few-step schedule.

    Attributes:
        method: ``euler`` (the flow's ODE) or ``renoise`` (predict the clean latents, noise them again: students trained by
            consistency or distribution matching on re-noised samples; diffusers' ``stochastic_sampling``).
        sigmas: noise levels after the scheduler's shift, one more than there are steps, the last 0.
        timesteps: what the transformer is told at each step, 0 to 1000.
        guidance: what a step adds to what the network predicts.
    """

    method: Sampler
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    guidance: Guidance = field(default_factory=Guidance)

    @property
    def passes(self) -> int:
        """How often a picture asks the network."""
        return self.guidance.passes(self.sigmas)


def plan_sampling(
    student: Student,
    height: int,
    width: int,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    method: Sampler | None = None,
    default_steps: int = 4,
    guidance: Mapping[str, Any] | None = None,
) -> Sampling:
    """What diffusers computes for ``num_inference_steps=steps`` or for ``sigmas=sigmas``.

    Args:
        student: its ``student.json`` gives what is not given here.
        height: picture height in pixels; schedulers with dynamic shifting depend on it.
        width: picture width in pixels.
        steps: number of steps.
        sigmas: one sigma for each step, before the shift.
        method: by default what the scheduler's ``stochastic_sampling`` says.
        default_steps: where neither is given, here or by the student.
        guidance: what is wanted of it, by the names of :class:`exporters.guidance.Guidance`.

    Raises:
        ExportError: the sigmas do not fall from at most 1 to above 0, or disagree with the number of steps.
        InputError: the guidance is not one.
    """
    defaults = student.defaults
    if sigmas is None and defaults.sigmas is not None and steps in (None, len(defaults.sigmas)):
        sigmas = defaults.sigmas
    steps = steps or (len(sigmas) if sigmas is not None else defaults.steps) or default_steps
    if sigmas is not None:
        _check(sigmas, steps)
    if steps > MOST_STEPS:
        raise ExportError("The steps cannot be planned.", [Complaint("steps", "too many", f"at most {MOST_STEPS}", str(steps))])
    shifted, timesteps = _schedule(student, height, width, steps, sigmas)
    stochastic = student.configs["scheduler"].get("stochastic_sampling")
    chosen: Sampler = method or ("renoise" if stochastic else "euler")
    layers = student.configs["transformer"]["num_layers"]
    return Sampling(chosen, shifted, timesteps, settled_guidance(guidance or {}, asdict(defaults), layers))


def idle_steps(student: Student, height: int, width: int, sampling: Sampling) -> str:
    """What to know of steps that hardly move, with the grid whose steps all do; empty where there is none of either.

    Diffusers' own grid for ``num_inference_steps`` ends in such a step where there are few: it spaces the steps between the
    shifted ends of the training schedule and shifts them again. Spaced evenly before the shift, from 1 to 1 / steps, they all
    move. Long schedules have small steps in any grid, of which nothing is said.

    Args:
        student: its scheduler shifts the other grid.
        height: picture height in pixels.
        width: picture width in pixels.
        sampling: the schedule.
    """
    steps = len(sampling.timesteps)
    moved = [a - b for a, b in itertools.pairwise(sampling.sigmas)]
    if min(moved) >= IDLE:
        return ""
    even = [1 - i / steps for i in range(steps)]
    try:
        others = _schedule(student, height, width, steps, even)[0]
    except ExportError:  # a scheduler that makes no schedule of it
        others = sampling.sigmas
    if min(a - b for a, b in itertools.pairwise(others)) < BETTER * min(moved):
        return ""
    idle = [f"step {i + 1} ({100 * move:.2g} %)" for i, move in enumerate(moved) if move < IDLE]
    grid = f"--sigmas {','.join(f'{sigma:.4g}' for sigma in even)}" if steps <= SHOWN else f"an even grid from 1 to 1/{steps}"
    return (
        f"of {steps} steps{_shown(sampling.sigmas)}, {_listed(idle)} hardly {'moves' if len(idle) == 1 else 'move'} from noise "
        f"to picture; {grid} (before the shift) makes every step count{_shown(others)}"
    )


def _shown(sigmas: Sequence[float]) -> str:
    return f" (sigmas {', '.join(f'{sigma:.4g}' for sigma in sigmas)})" if len(sigmas) <= SHOWN + 1 else ""


def _listed(names: list[str]) -> str:
    names = names if len(names) <= SHOWN else [*names[:3], f"{len(names) - 3} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _schedule(
    student: Student, height: int, width: int, steps: int, sigmas: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sigmas and timesteps of diffusers' scheduler.

    Raises:
        ExportError: it makes no usable ones.
    """
    scheduler = reference_scheduler(student)
    extra = {"mu": _dynamic_shift(student, height, width)} if scheduler.config.use_dynamic_shifting else {}
    schedule = {"num_inference_steps": steps} if sigmas is None else {"sigmas": list(sigmas)}
    try:
        scheduler.set_timesteps(**schedule, device="cpu", **extra)
    except ArithmeticError as error:  # a shift that no float can hold
        raise ExportError("The scheduler cannot be used.", [Complaint("scheduler_config.json", str(error))]) from error
    shifted = scheduler.sigmas.tolist()
    falling = all(a > b for a, b in itertools.pairwise(shifted))
    if not (all(0 <= sigma <= 1 for sigma in shifted) and falling and shifted[-1] == 0):
        complaint = Complaint("scheduler_config.json", "makes unusable sigmas", "falling from at most 1 to 0", str(shifted))
        raise ExportError("The scheduler cannot be used.", [complaint])
    return tuple(shifted), tuple(scheduler.timesteps.tolist())


def _dynamic_shift(student: Student, height: int, width: int) -> float:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    step = VAE_SCALE * student.configs["transformer"]["patch_size"]
    config = student.configs["scheduler"]
    parameters = inspect.signature(calculate_shift).parameters
    base = {
        "base_seq_len": "base_image_seq_len",
        "max_seq_len": "max_image_seq_len",
        "base_shift": "base_shift",
        "max_shift": "max_shift",
    }
    given = {name: config[key] for name, key in base.items() if name in parameters and key in config}
    return float(calculate_shift((height // step) * (width // step), **given))


def _check(sigmas: Sequence[float], steps: int) -> None:
    complaints = []
    if len(sigmas) != steps:
        complaints.append(Complaint("sigmas", "not one for each step", str(steps), str(len(sigmas))))
    if not all(0 < sigma <= 1 for sigma in sigmas) or any(a <= b for a, b in itertools.pairwise(sigmas)):
        complaints.append(
            Complaint("sigmas", "wrong", "numbers that fall, from at most 1, to above 0", ",".join(map(str, sigmas)))
        )
    if complaints:
        raise ExportError("The sigmas cannot be used.", complaints)
