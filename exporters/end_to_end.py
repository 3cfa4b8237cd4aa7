"""The whole student in diffusers, from prompt and latents to picture: what a bundle's pictures are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import torch

from exporters.graphs import VAE_SCALE
from exporters.reference import reference_pipeline
from exporters.sampling import Method
from exporters.student import Student


def reference_picture(
    student: Student,
    prompt: str,
    latents: np.ndarray,
    sigmas: Sequence[float],
    timesteps: Sequence[float],
    method: Method,
    keep_t5: bool,
    max_sequence_length: int,
    step_noise: np.ndarray | None = None,
) -> np.ndarray:
    """What ``StableDiffusion3Pipeline`` draws without guidance, in fp32.

    Args:
        student: the student.
        prompt: what to draw.
        latents: initial noise ``[1, channels, height / 8, width / 8]``.
        sigmas: pinned noise levels, one more than there are steps.
        timesteps: pinned timesteps.
        method: the sampler.
        keep_t5: whether T5 takes part.
        max_sequence_length: T5's tokens, or zero tokens in their place.
        step_noise: ``[steps, channels, height, width]``, what re-noising draws.

    Returns:
        ``[1, height, width, 3]`` in [0, 1].
    """
    pipeline = reference_pipeline(student, keep_t5)
    scheduler = pipeline.scheduler

    def pinned(num_inference_steps: int | None = None, device: object = None, **_: object) -> None:
        scheduler.num_inference_steps = len(timesteps)
        scheduler.sigmas, scheduler.timesteps = torch.tensor(sigmas), torch.tensor(timesteps)
        scheduler._step_index = scheduler._begin_index = None  # noqa: SLF001  (as diffusers' own set_timesteps leaves them)

    scheduler.set_timesteps = pinned
    if method == "renoise":
        assert step_noise is not None
        scheduler.register_to_config(stochastic_sampling=True)
    with _noise(step_noise if method == "renoise" else None):
        out = pipeline(
            prompt,
            height=latents.shape[2] * VAE_SCALE,
            width=latents.shape[3] * VAE_SCALE,
            num_inference_steps=len(timesteps),
            guidance_scale=1.0,
            latents=torch.from_numpy(latents.copy()),
            max_sequence_length=max_sequence_length,
            output_type="np",
        )
    return np.asarray(out.images)


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
