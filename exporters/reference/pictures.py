"""The whole student in diffusers, from prompt and latents to picture: what a bundle's pictures are compared with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import VAE_SCALE
from exporters.reference.diffusers import reference_pipeline
from exporters.reference.pinned_scheduler import pinned_scheduler
from exporters.scales import cropped, step_sizes
from exporters.student.student import Student

_BARELY_GUIDED = math.nextafter(1.0, 2.0)


class PinnedPipeline:
    """A ``StableDiffusion3Pipeline`` with a bundle's schedule and guidance.

    Args:
        pipeline: whatever runs behind its components; its scheduler is replaced.
        sampling: the schedule.
        max_sequence_length: T5's tokens, or zero tokens in their place.
    """

    def __init__(self, pipeline: Any, sampling: Sampling, max_sequence_length: int) -> None:
        self._pipeline, self._max_sequence_length = pipeline, max_sequence_length
        self._scheduler = pipeline.scheduler = pinned_scheduler(pipeline.scheduler, sampling)

    def draw(self, prompt: str, latents: np.ndarray, step_noise: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw one picture.

        Args:
            prompt: what to draw.
            latents: initial noise ``[1, channels, height / 8, width / 8]``; where they grow, it is cut to the first step's size.
            step_noise: ``[steps, channels, height / 8, width / 8]``, what re-noising draws.

        Returns:
            The picture, ``[1, height, width, 3]`` in [0, 1], and the final latents, shaped like the initial ones.
        """
        sampling = self._scheduler.sampling
        rows, columns = step_sizes(sampling.scales, latents.shape[2:], len(sampling.timesteps))[0]
        latents = cropped(latents, (rows, columns))
        assert sampling.method != "renoise" or step_noise is not None
        self._scheduler.step_noise = None if step_noise is None else torch.from_numpy(step_noise)
        last, guidance = len(sampling.timesteps) - 1, sampling.guidance
        # A pipeline that once guides does so in every step: nearly by 1 where there is none, which is less than fp32 can tell.
        scales = [max(scale, _BARELY_GUIDED) if guidance.on else scale for scale in guidance.scales(sampling.sigmas)]
        final: list[np.ndarray] = []

        def on_step(pipeline: Any, step: int, timestep: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if step == last:
                final.append(tensors["latents"].float().numpy())
            else:
                pipeline._guidance_scale = scales[step + 1]  # noqa: SLF001  (what diffusers' guide to callbacks does)
            return {}

        out = self._pipeline(
            prompt,
            height=rows * VAE_SCALE,
            width=columns * VAE_SCALE,
            num_inference_steps=last + 1,
            guidance_scale=scales[0],
            negative_prompt=guidance.negative_prompt,
            skip_guidance_layers=list(guidance.skip_guidance_layers) or None,
            skip_layer_guidance_scale=guidance.skip_layer_guidance_scale,
            skip_layer_guidance_start=guidance.skip_layer_guidance_start,
            skip_layer_guidance_stop=guidance.skip_layer_guidance_stop,
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
    sampling: Sampling,
    *,
    keep_t5: bool,
    max_sequence_length: int,
    step_noise: np.ndarray | None = None,
) -> np.ndarray:
    """What ``StableDiffusion3Pipeline`` draws, in fp32: ``[1, height, width, 3]`` in [0, 1].

    For several pictures, make a :class:`PinnedPipeline` once: this reads the whole student.

    Args:
        student: the student.
        prompt: as in :meth:`PinnedPipeline.draw`.
        latents: likewise.
        sampling: as in :class:`PinnedPipeline`.
        keep_t5: whether T5 takes part.
        max_sequence_length: as in :class:`PinnedPipeline`.
        step_noise: as in :meth:`PinnedPipeline.draw`.
    """
    pinned = PinnedPipeline(reference_pipeline(student, keep_t5), sampling, max_sequence_length)
    return pinned.draw(prompt, latents, step_noise)[0]
