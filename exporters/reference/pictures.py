"""The whole student in diffusers, from prompt and latents to picture: what a bundle's pictures are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

from exporters.choices import Sampler
from exporters.layouts.spec import VAE_SCALE
from exporters.reference.diffusers import reference_pipeline
from exporters.student.student import Student


class PinnedPipeline:
    """A ``StableDiffusion3Pipeline`` with a bundle's schedule, without guidance.

    Args:
        pipeline: whatever runs behind its components.
        sigmas: pinned noise levels, one more than there are steps.
        timesteps: pinned timesteps.
        method: the sampler.
        max_sequence_length: T5's tokens, or zero tokens in their place.
    """

    def __init__(
        self, pipeline: Any, sigmas: Sequence[float], timesteps: Sequence[float], method: Sampler, max_sequence_length: int
    ) -> None:
        self._pipeline, self._steps, self._method = pipeline, len(timesteps), method
        self._max_sequence_length = max_sequence_length
        scheduler = pipeline.scheduler

        def pinned(num_inference_steps: int | None = None, device: object = None, **_: object) -> None:
            scheduler.num_inference_steps = len(timesteps)
            scheduler.sigmas, scheduler.timesteps = torch.tensor(sigmas), torch.tensor(timesteps)
            scheduler._step_index = scheduler._begin_index = None  # noqa: SLF001  (as diffusers' own set_timesteps leaves them)

        scheduler.set_timesteps = pinned
        if method == "renoise":
            scheduler.register_to_config(stochastic_sampling=True)

    def draw(self, prompt: str, latents: np.ndarray, step_noise: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw one picture.

        Args:
            prompt: what to draw.
            latents: initial noise ``[1, channels, height / 8, width / 8]``.
            step_noise: ``[steps, channels, height / 8, width / 8]``, what re-noising draws.

        Returns:
            The picture, ``[1, height, width, 3]`` in [0, 1], and the final latents, shaped like the initial ones.
        """
        final: list[np.ndarray] = []

        def on_step(pipeline: object, step: int, timestep: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if step == self._steps - 1:
                final.append(tensors["latents"].float().numpy())
            return {}

        assert self._method != "renoise" or step_noise is not None
        with _noise(step_noise if self._method == "renoise" else None):
            out = self._pipeline(
                prompt,
                height=latents.shape[2] * VAE_SCALE,
                width=latents.shape[3] * VAE_SCALE,
                num_inference_steps=self._steps,
                guidance_scale=1.0,
                latents=torch.from_numpy(latents.copy()),
                max_sequence_length=self._max_sequence_length,
                output_type="np",
                callback_on_step_end=on_step,
            )
        return np.asarray(out.images), final[0]


def reference_picture(
    student: Student,
    prompt: str,
    latents: np.ndarray,
    sigmas: Sequence[float],
    timesteps: Sequence[float],
    method: Sampler,
    keep_t5: bool,
    max_sequence_length: int,
    step_noise: np.ndarray | None = None,
) -> np.ndarray:
    """What ``StableDiffusion3Pipeline`` draws without guidance, in fp32: ``[1, height, width, 3]`` in [0, 1].

    Args:
        student: the student.
        prompt: as in :meth:`PinnedPipeline.draw`.
        latents: likewise.
        sigmas: as in :class:`PinnedPipeline`.
        timesteps: likewise.
        method: likewise.
        keep_t5: whether T5 takes part.
        max_sequence_length: T5's tokens, or zero tokens in their place.
        step_noise: as in :meth:`PinnedPipeline.draw`.
    """
    pipeline = reference_pipeline(student, keep_t5)
    return PinnedPipeline(pipeline, sigmas, timesteps, method, max_sequence_length).draw(prompt, latents, step_noise)[0]


@contextlib.contextmanager
def _noise(step_noise: np.ndarray | None) -> Iterator[None]:
    """While active, the noise that diffusers' scheduler draws is the given one, step by step."""
    if step_noise is None:
        yield
        return
    left = [torch.from_numpy(noise) for noise in step_noise]
    target = "diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor"
    with mock.patch(target, lambda shape, **_: left.pop(0).reshape(shape)):
        yield
