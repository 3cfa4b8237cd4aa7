"""Data of this world: scenes and pictures by number, the same whoever draws them, and their latents on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillation.batches import Batch
from distillation.counters import Counter
from distillation.networks.conditioning import Conditioning
from distillation.world.render import render
from distillation.world.scenes import Scene, sample
from quantization.files import write_array

__all__ = ["Latents", "encode", "latent_batch", "picture_batch", "pictures", "scenes"]

CHUNK = 64


def scenes(numbers: range, seed: int) -> list[Scene]:
    """The scenes of these numbers: each depends on its own number alone."""
    return [sample(1, _seed(seed, number))[0] for number in numbers]


def pictures(numbers: range, seed: int) -> Tensor:
    """True pictures of the scenes of these numbers, ``[count, 3, 64, 64]`` in [-1, 1]."""
    drawn = [render(scene, _seed(seed, number) + 1) for scene, number in zip(scenes(numbers, seed), numbers, strict=True)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous() * 2 - 1


def _seed(seed: int, number: int) -> int:
    return (seed << 40) + 2 * number


def picture_batch(step: int, batch: int, samples: range, seed: int) -> Batch:
    """This process's pictures of a step, new ones each time."""
    numbers = range(step * batch + samples.start, step * batch + samples.stop)
    return Batch(noise=torch.empty(len(numbers), 0), x0=pictures(numbers, seed), samples=samples)


@torch.no_grad()
def encode(vae: Any, count: int, seed: int, file: Path, on_chunk: Callable[[int], None] = lambda done: None) -> None:
    """Write the latents of the first ``count`` scenes, scaled as the transformer sees them: ``[count, 16, 8, 8]`` in fp16.

    Args:
        vae: an ``AutoencoderKL`` whose scaling and shift are set.
        count: of pictures.
        seed: of the scenes.
        file: to write, a ``.npy``.
        on_chunk: told how many are done.
    """
    parts = []
    for start in range(0, count, CHUNK):
        latents = vae.encode(pictures(range(start, min(start + CHUNK, count)), seed)).latent_dist.mean
        parts.append(((latents - vae.config.shift_factor) * vae.config.scaling_factor).half().numpy())
        on_chunk(min(start + CHUNK, count))
    write_array(file, np.concatenate(parts))


@dataclass(frozen=True)
class Latents:
    """Latents of scenes and what was said of them.

    Attributes:
        latents: ``[count, channels, height, width]``, mapped from disk.
        captions: of each.
    """

    latents: np.ndarray
    captions: list[str]

    @classmethod
    def of(cls, file: Path, seed: int) -> Latents:
        """Those of a file that :func:`encode` wrote."""
        latents = np.load(file, mmap_mode="r", allow_pickle=False)
        return cls(latents, [str(scene) for scene in scenes(range(len(latents)), seed)])


def latent_batch(
    data: Latents,
    encoder: Callable[[list[str]], Conditioning],
    uncond: Conditioning,
    place: Counter,
    *,
    dropped: float,
    without_t5: float,
) -> Batch:
    """A batch for a teacher: pictures at random, some without a prompt, some without T5.

    Args:
        data: to choose from.
        encoder: of captions.
        uncond: embeddings of the empty prompt.
        place: the random numbers'.
        dropped: share of samples that are told the empty prompt, for guidance.
        without_t5: share of samples whose T5 tokens are zeros.
    """
    like = torch.zeros(())
    chosen = place.integers("pictures", len(data.captions)).tolist()
    x0 = torch.from_numpy(np.stack([data.latents[index] for index in chosen])).float()
    cond = encoder([data.captions[index] for index in chosen])
    cond = cond.where(place.uniform("prompts", like) >= dropped, uncond.repeated(len(chosen)))
    cond = cond.without_t5(place.uniform("t5", like) < without_t5)
    return Batch(noise=place.normal("start", x0.shape[1:], x0), cond=cond, x0=x0, samples=place.samples)
