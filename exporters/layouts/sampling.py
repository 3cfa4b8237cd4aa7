"""The sampler's numbers, computed once by diffusers' own scheduler; a bundle pins them and computes none of them again."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from exporters.choices import Sampler, UpscaleMode
from exporters.errors import Complaint, ExportError
from exporters.guidance import Guidance, settled_guidance
from exporters.layouts.schedule import HEADLINE, Schedule
from exporters.layouts.spec import VAE_SCALE
from exporters.scales import step_sizes
from exporters.student.scheduler import as_sampled, reference_scheduler, sampler_of
from exporters.student.student import Student

IDLE = 0.03  # a step that moves less than this share of the way from noise to picture costs as much as one that moves all of it
SHOWN = 12  # steps whose sigmas are written out
BETTER = 1.5  # how much more the smallest step of another grid must move for that grid to be worth a word


@dataclass(frozen=True)
class Sampling:
    """A few-step schedule.

    Attributes:
        method: ``euler`` (the flow's ODE), ``renoise`` (predict the clean latents, noise them again: students trained by
            consistency or distribution matching on re-noised samples; diffusers' ``stochastic_sampling``) or ``dpmpp``
            (DPM-Solver++, Lu et al. 2022, arXiv 2211.01095: several steps' predictions combined).
        sigmas: noise levels after the scheduler's shift, one more than there are steps, the last 0.
        timesteps: what the transformer is told at each step, 0 to 1000.
        guidance: what a step adds to what the network predicts.
        combinations: of ``dpmpp``: the latents after each step as a combination of the first latents and of the clean latents
            that each step so far has predicted, in that order.
        scales: sizes of the latents of each step, as shares of the last, which is the picture's; none where they do not grow.
        upscale_mode: how they are enlarged between steps.
    """

    method: Sampler
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    guidance: Guidance = field(default_factory=Guidance)
    combinations: tuple[tuple[float, ...], ...] = ()
    scales: tuple[float, ...] = ()
    upscale_mode: UpscaleMode = "nearest"

    @property
    def passes(self) -> int:
        """How often a picture asks the network."""
        return self.guidance.passes(self.sigmas)


def as_wanted(student: Student, wanted: Schedule) -> Student:
    """A student whose scheduler steps as is wanted; one whose latents grow draws noise anew if nobody says otherwise.

    Raises:
        ExportError: as :func:`~exporters.student.scheduler.as_sampled`, and where what is wanted contradicts itself.
    """
    sampler = wanted.sampler or student.defaults.sampler or ("renoise" if wanted.over(student.defaults).scales else None)
    return as_sampled(student, sampler, wanted.shift)


def plan_sampling(
    student: Student,
    height: int,
    width: int,
    wanted: Schedule | None = None,
    guidance: Mapping[str, Any] | None = None,
    default_steps: int = 4,
) -> Sampling:
    """What diffusers computes for ``num_inference_steps=steps``, or for sigmas or timesteps.

    Args:
        student: its ``student.json`` gives what is not given here.
        height: picture height in pixels; schedulers with dynamic shifting depend on it.
        width: picture width in pixels.
        wanted: of the schedule.
        guidance: what is wanted of it, by the names of :class:`exporters.guidance.Guidance`.
        default_steps: where nobody says how many.

    Raises:
        ExportError: the schedule cannot be used.
        InputError: the guidance is not one.
    """
    wanted = wanted or Schedule()
    student, schedule = as_wanted(student, wanted), wanted.over(student.defaults)
    schedule = replace(schedule, steps=schedule.steps or default_steps)
    schedule.check()
    if schedule.scales:
        _check_scales(student, height, width, schedule)
    shifted, timesteps = _schedule(student, height, width, schedule)
    method = sampler_of(student.configs["scheduler"])
    combinations = combined_steps(student, shifted, timesteps) if method == "dpmpp" else ()
    layers = student.configs["transformer"]["num_layers"]
    guided = settled_guidance(guidance or {}, asdict(student.defaults), layers)
    scales = tuple(scale / schedule.scales[-1] for scale in schedule.scales) if schedule.scales else ()
    return Sampling(method, shifted, timesteps, guided, combinations, scales, schedule.upscale_mode or "nearest")


def _check_scales(student: Student, height: int, width: int, wanted: Schedule) -> None:
    """Latents grow where noise is drawn anew, and each step's are whole patches."""
    patch, complaints = student.configs["transformer"]["patch_size"], []
    if (method := sampler_of(student.configs["scheduler"])) != "renoise":
        complaints.append(Complaint("scales", "latents grow where noise is drawn anew in every step", "renoise", method))
    assert wanted.scales is not None
    assert wanted.steps is not None
    for rows, columns in step_sizes(wanted.scales, (height // VAE_SCALE, width // VAE_SCALE), wanted.steps):
        if rows % patch or columns % patch or not rows or not columns:
            complaints.append(
                Complaint("scales", "make latents that are no whole patches", f"multiples of {patch}", f"{rows} x {columns}")
            )
    if student.configs["scheduler"].get("use_dynamic_shifting") and wanted.sigmas_after_shift is None:
        complaints.append(Complaint("scales", "the scheduler's shift depends on the size", "--sigmas-after-shift, or --shift"))
    if complaints:
        raise ExportError(HEADLINE, complaints)


def combined_steps(student: Student, sigmas: Sequence[float], timesteps: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """What diffusers' multistep scheduler makes of unit vectors: its steps are linear in all that they take.

    Args:
        student: whose scheduler it is.
        sigmas: noise levels, one more than there are steps.
        timesteps: one for each step.
    """
    import torch

    scheduler, steps = reference_scheduler(student), len(timesteps)
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = torch.tensor(sigmas), torch.tensor(timesteps)
    unit = torch.eye(steps + 1, dtype=torch.float64)  # the first latents, then what each step predicts
    latents, combinations = unit[0], []
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = (latents - unit[step + 1]) / scheduler.sigmas[step]
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        combinations.append(tuple(latents[: step + 2].tolist()))
    return tuple(combinations)


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
        others = _schedule(student, height, width, Schedule(steps, even))[0]
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


def _schedule(student: Student, height: int, width: int, wanted: Schedule) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sigmas and timesteps of diffusers' scheduler.

    Raises:
        ExportError: it makes no usable ones.
    """
    scheduler = reference_scheduler(student)
    takes_lists = "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
    if wanted.sigmas_after_shift is not None or (wanted.sigmas is not None and not takes_lists):
        shifted = _levels(student, wanted)
        timesteps = [scheduler.config.num_train_timesteps * sigma for sigma in shifted[:-1]]
    else:
        extra = {"mu": _dynamic_shift(student, height, width)} if scheduler.config.get("use_dynamic_shifting") else {}
        lists: dict[str, Any] = {
            key: list(given) for key in ("sigmas", "timesteps") if takes_lists and (given := getattr(wanted, key))
        }
        try:
            scheduler.set_timesteps(**lists or {"num_inference_steps": wanted.steps}, device="cpu", **extra)
        except ArithmeticError as error:  # a shift that no float can hold
            raise ExportError("The scheduler cannot be used.", [Complaint("scheduler_config.json", str(error))]) from error
        shifted, timesteps = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()
    timesteps = list(wanted.timesteps or timesteps)
    falling = all(a > b for a, b in itertools.pairwise(shifted))
    if not (all(0 <= sigma <= 1 for sigma in shifted) and falling and shifted[-1] == 0):
        complaint = Complaint("scheduler_config.json", "makes unusable sigmas", "falling from at most 1 to 0", str(shifted))
        raise ExportError("The scheduler cannot be used.", [complaint])
    return tuple(shifted), tuple(map(float, timesteps))


def _levels(student: Student, wanted: Schedule) -> list[float]:
    """Levels that are given after the shift, or before that of a scheduler that takes none; in fp32, as diffusers keeps them."""
    if wanted.sigmas_after_shift is not None:
        levels = np.asarray(wanted.sigmas_after_shift, np.float32)
    else:
        given, shift = np.asarray(wanted.sigmas, np.float32), np.float32(student.configs["scheduler"].get("flow_shift", 1.0))
        levels = shift * given / (1 + (shift - 1) * given)
    return [*levels.tolist(), 0.0]


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
