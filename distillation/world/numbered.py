"""Scenes and pictures by number: each depends on its own number alone, whoever draws it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distillation.world.render import render
from distillation.world.scenes import Scene, sample

__all__ = ["pictures", "scenes"]


def scenes(numbers: Sequence[int], seed: int) -> list[Scene]:
    """The scenes of these numbers."""
    return [sample(1, _seed(seed, number))[0] for number in numbers]


def pictures(numbers: Sequence[int], seed: int) -> Tensor:
    """True pictures of the scenes of these numbers, ``[count, 3, 64, 64]`` in [-1, 1]."""
    drawn = [render(scene, _seed(seed, number) + 1) for scene, number in zip(scenes(numbers, seed), numbers, strict=True)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous() * 2 - 1


def _seed(seed: int, number: int) -> int:
    return (seed << 40) + 2 * number
