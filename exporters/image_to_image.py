"""Drawing upon a picture: where its steps begin, and which schedules can (SDEdit, Meng et al. 2022, arXiv 2108.01073).

As diffusers' ``StableDiffusion3Img2ImgPipeline`` and ``StableDiffusion3InpaintPipeline`` do it.
"""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_STRENGTH = 0.6
LOG_VARIANCE = -30.0, 20.0
"""Between what diffusers' ``DiagonalGaussianDistribution`` keeps that of a picture's latents."""


def first_step(strength: float, steps: int) -> int:
    """Index of the first step that is made (``get_timesteps`` in diffusers); ``steps`` where none is.

    Args:
        strength: 0 to 1, the share of the steps that are made.
        steps: of the schedule.

    >>> [first_step(strength, 4) for strength in (1.0, 0.6, 0.5, 0.25, 0.0)]
    [0, 1, 2, 3, 4]
    """
    return int(max(steps - min(steps * strength, steps), 0))


def not_drawn_upon(method: str, scales: Sequence[float]) -> str:
    """Why pictures of a schedule cannot begin in its middle; empty where they can.

    Args:
        method: how it steps.
        scales: of its latents.
    """
    if scales:
        return "latents that grow from step to step begin with noise"
    return "steps of DPM-Solver++ begin with noise" if method == "dpmpp" else ""
