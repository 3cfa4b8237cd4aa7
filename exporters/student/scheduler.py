"""The student's scheduler: read as one that diffusers has, told otherwise where that is asked for, and made by diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from exporters.choices import Sampler, UpscaleMode, options
from exporters.errors import Complaint, ExportError, StudentError
from exporters.student.classes import CLASS_KEY, CLASSES
from exporters.student.configs import LARGEST, check_config
from exporters.student.student import Student

EULER, DPM = CLASSES["scheduler"]
RENOISING = {
    "FlowMatchLCMScheduler": "diffusers'",
    "FlashFlowMatchEulerDiscreteScheduler": "flash-sd3's own",
}
"""Schedulers that compute what :data:`EULER` does with ``stochastic_sampling``, and whose they are."""
_LCM_ONLY = ("scale_factors", "upscale_mode")
_DPM_OF_FLOWS = {
    CLASS_KEY: DPM,
    "algorithm_type": "dpmsolver++",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "final_sigmas_type": "zero",
}
"""The scheduler of Sana, with which TDM's students are drawn."""


def read_scheduler(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """A scheduler's configuration as one of :data:`EULER` or of :data:`DPM`, what it says beside, and what is to be said of it.

    What it says beside is by the names of :class:`~exporters.student.defaults.StudentDefaults`.

    Raises:
        StudentError: it is another scheduler, or has a value that it cannot have.
    """
    name, read, notes, beside = str(config.get(CLASS_KEY)), dict(config), [], {}
    if name in RENOISING:
        if config.get("scale_factors"):
            beside = _growing(config)
        read = {key: value for key, value in config.items() if key not in _LCM_ONLY}
        read |= {CLASS_KEY: EULER, "stochastic_sampling": True}
        notes.append(f"the scheduler is {name}, {RENOISING[name]}: it draws noise anew in every step (sampler renoise)")
    if read.get(CLASS_KEY) not in CLASSES["scheduler"]:
        expected = " or ".join((*CLASSES["scheduler"], *RENOISING))
        complaint = Complaint("scheduler", "another scheduler", expected, name)
        raise StudentError(
            "The scheduler cannot be used.",
            [complaint],
            f"where it computes the same schedule, write {EULER} into scheduler_config.json, "
            "and build with --sampler renoise if it draws noise anew in every step",
        )
    if complaints := check_config("scheduler", read):
        raise StudentError("The scheduler cannot be used.", complaints)
    return read, beside, notes


def _growing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the latents of each step, of factors on the first size for all steps after it."""
    factors, mode = config["scale_factors"], config.get("upscale_mode", "bicubic")
    complaints = []
    if not (isinstance(factors, list) and all(type(one) in (int, float) and 0 < one < LARGEST for one in factors)):
        complaints.append(Complaint("scheduler: scale_factors", "wrong", "a list of numbers above 0", repr(factors)))
    if mode not in options(UpscaleMode):
        complaints.append(Complaint("scheduler: upscale_mode", "wrong", " or ".join(options(UpscaleMode)), repr(mode)))
    if complaints:
        raise StudentError("The scheduler cannot be used.", complaints)
    return {"scales": (1.0, *map(float, factors)), "upscale_mode": mode}


def sampler_of(config: Mapping[str, Any]) -> Sampler:
    """How a scheduler steps, by its configuration."""
    if config.get(CLASS_KEY) == DPM:
        return "dpmpp"
    return "renoise" if config.get("stochastic_sampling") else "euler"


def as_sampled(student: Student, sampler: Sampler | None, shift: float | None) -> Student:
    """A student whose scheduler is as wanted here, else as its ``student.json`` says; a second time changes nothing.

    Args:
        student: the student.
        sampler: how to step.
        shift: of noise levels, in place of the scheduler's own, dynamic or not.

    Raises:
        ExportError: its scheduler's shift depends on the picture's size, and the sampler has none such.
    """
    config, defaults = student.configs["scheduler"], student.defaults
    config = stepping(config, sampler or defaults.sampler or sampler_of(config))
    if (wanted := shift if shift is not None else defaults.shift) is not None:
        config |= {"flow_shift": wanted} if config[CLASS_KEY] == DPM else {"shift": wanted, "use_dynamic_shifting": False}
    if config[CLASS_KEY] == DPM and config.get("use_dynamic_shifting"):
        complaint = Complaint("--sampler", "dpmpp has no shift that depends on the picture's size", "--shift beside it", "dpmpp")
        raise ExportError("The scheduler cannot be used.", [complaint])
    return (
        student if config == student.configs["scheduler"] else replace(student, configs=student.configs | {"scheduler": config})
    )


def stepping(config: Mapping[str, Any], sampler: Sampler) -> dict[str, Any]:
    """A scheduler's configuration, or that of another of the same shift, that steps so."""
    if sampler == sampler_of(config):
        return dict(config)
    own = {key: config[key] for key in ("num_train_timesteps",) if key in config}
    if sampler == "dpmpp":
        dynamic = {"use_dynamic_shifting": True} if config.get("use_dynamic_shifting") else {}
        return _DPM_OF_FLOWS | own | {"flow_shift": config.get("shift", 1.0)} | dynamic
    if config.get(CLASS_KEY) == DPM:
        return own | {CLASS_KEY: EULER, "shift": config.get("flow_shift", 1.0), "stochastic_sampling": sampler == "renoise"}
    return {**config, "stochastic_sampling": sampler == "renoise"}


def reference_scheduler(student: Student) -> Any:
    """The student's scheduler.

    Raises:
        StudentError: its configuration cannot be used.
    """
    import diffusers

    config = student.configs["scheduler"]
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return getattr(diffusers, config.get(CLASS_KEY, EULER)).from_config(arguments)
    except (ImportError, TypeError, ValueError) as error:  # beta sigmas need scipy; two kinds of sigmas at once
        raise StudentError("The scheduler cannot be used.", [Complaint("scheduler_config.json", str(error))]) from error
