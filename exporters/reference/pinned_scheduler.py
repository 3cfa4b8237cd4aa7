"""Diffusers' schedulers with a bundle's schedule in place of their own, and given noise in place of a generator's."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor
from torch.nn.functional import interpolate

from exporters.layouts.sampling import Sampling
from exporters.student.classes import CLASS_KEY
from exporters.student.scheduler import stepping


def pinned_scheduler(scheduler: Any, sampling: Sampling) -> Any:
    """Diffusers' scheduler that steps as a schedule does, with its levels.

    Args:
        scheduler: whose configuration it has, as far as it steps so itself.
        sampling: the schedule.
    """
    config = stepping({**scheduler.config, CLASS_KEY: type(scheduler).__name__}, sampling.method)
    kind: Any = PinnedSolver if sampling.method == "dpmpp" else PinnedScheduler
    pinned = kind.from_config({key: value for key, value in config.items() if not key.startswith("_")})
    pinned.sampling = sampling
    return pinned


class PinnedScheduler(FlowMatchEulerDiscreteScheduler):
    """A scheduler that makes the steps of its schedule, however many it is asked for.

    Attributes:
        sampling: the schedule.
        step_noise: what re-noising adds, ``[steps, channels, height / 8, width / 8]``; set before each picture.
    """

    sampling: Sampling
    step_noise: Tensor | None = None
    sigmas: Any  # diffusers' own attributes, of more types than its constructor gives them
    timesteps: Any
    _first_size: Any = None
    _step_index: Any
    _begin_index: Any

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, *_: object, **__: object) -> None:
        """Begin a picture."""
        self.num_inference_steps = len(self.sampling.timesteps)
        self.sigmas = torch.tensor(self.sampling.sigmas)
        self.timesteps = torch.tensor(self.sampling.timesteps, device=device)
        self._step_index = self._begin_index = self._first_size = None

    def _enlarged(self, clean: Tensor, step: int) -> Tensor:
        """Clean latents at the size of a step, by the size that those of the first have."""
        scales = self.sampling.scales
        if not scales:
            return clean
        if self._first_size is None:
            self._first_size = clean.shape[-2:]
        size = [round(side * scales[step] / scales[0]) for side in self._first_size]
        return interpolate(clean, size=size, mode=self.sampling.upscale_mode)

    def step(self, model_output: Any, timestep: Any, sample: Any, *arguments: Any, **options: Any) -> Any:
        """Diffusers' own step; where that draws noise (its ``stochastic_sampling``), the same step with the given noise."""
        if self.sampling.method != "renoise" or self.step_noise is None:
            return super().step(model_output, timestep, sample, *arguments, **options)
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self._step_index
        clean = sample.to(torch.float32) - self.sigmas[index] * model_output
        clean, noise = self._enlarged(clean, min(index + 1, len(self.sampling.timesteps) - 1)), self.step_noise[index]
        noise = noise[..., : clean.shape[-2], : clean.shape[-1]].reshape(clean.shape)
        noised = ((1.0 - self.sigmas[index + 1]) * clean + self.sigmas[index + 1] * noise).to(model_output.dtype)
        self._step_index += 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=noised) if options.get("return_dict", True) else (noised,)


class PinnedSolver(DPMSolverMultistepScheduler):
    """The multistep solver, with its own formulas for the levels of a schedule.

    Attributes:
        sampling: the schedule.
        step_noise: of no use to it.
    """

    sampling: Sampling
    step_noise: Tensor | None = None
    sigmas: Any
    timesteps: Any

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, *_: object, **__: object) -> None:
        """Begin a picture."""
        super().set_timesteps(len(self.sampling.timesteps))
        self.sigmas = torch.tensor(self.sampling.sigmas)
        self.timesteps = torch.tensor(self.sampling.timesteps, device=device)
