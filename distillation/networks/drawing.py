"""Pictures of prompts, as a student, or a teacher with guidance, draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillation.counters import Counter
from distillation.flow import Velocity, euler
from distillation.levels import shifted
from distillation.networks.conditioning import Conditioning
from distillation.objectives.trajectory import teacher_velocity

__all__ = ["TEACHER_STEPS", "Sampler", "decode", "teacher_levels"]

TEACHER_STEPS = 28
"""In which a teacher draws beside its students, as diffusers has it for Stable Diffusion 3."""


def teacher_levels(steps: int = TEACHER_STEPS, shift: float = 3.0) -> tuple[float, ...]:
    """SD3's own levels: evenly spaced before the shift.

    >>> [round(level, 2) for level in teacher_levels(4)]
    [1.0, 0.9, 0.75, 0.5, 0.0]
    """
    return (*(shifted(1 - step / steps, shift) for step in range(steps)), 0.0)


@dataclass(frozen=True)
class Sampler:
    """How a network draws.

    Attributes:
        network: ``(x, t, cond) -> v``.
        levels: from 1 down to 0, Euler steps between them.
        encode: what is asked for, prompts most often, to conditioning.
        shape: of a latent, ``(channels, height, width)``.
        guidance: 1 for none.
        without_t5: T5's tokens as zeros.
        seed: of the starting noise: sample ``n`` begins at the same noise whoever draws it.
    """

    network: Velocity
    levels: Sequence[float]
    encode: Callable[[Sequence[Any]], Conditioning]
    shape: tuple[int, int, int]
    guidance: float = 1.0
    without_t5: bool = False
    seed: int = 0

    @torch.no_grad()
    def latents(self, prompts: Sequence[Any], first: int = 0) -> Tensor:
        """Latents of prompts, ``[prompts, channels, height, width]``, as the transformer sees them.

        Args:
            prompts: what to draw.
            first: number of the first sample.
        """
        cond = self.encode(prompts)
        if self.without_t5:
            cond = cond.without_t5(torch.ones(len(prompts), dtype=torch.bool, device=cond.tokens.device))
        velocity = self.network
        if self.guidance != 1:
            velocity = teacher_velocity(velocity, self.encode([""]).repeated(len(prompts)), self.guidance)
        place = Counter(self.seed, "draw", 0, range(first, first + len(prompts)))
        noise = place.normal("start", self.shape, torch.zeros((), device=cond.tokens.device))
        return euler(velocity, noise, self.levels, cond)[-1]


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pictures ``[batch, 3, height, width]`` in [0, 1] of latents as the transformer sees them."""
    scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    pictures: Tensor = vae.decode(scaled).sample
    return (pictures / 2 + 0.5).clamp(0, 1)
