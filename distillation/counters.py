"""Random numbers from counters: no generator has a state, so nothing has to be saved and nothing depends on who draws.

A number is a function of (seed, stage, purpose), (step, sample) and its place in the sample: a batch is the same whatever the
number of processes that share it, and a run that goes on needs only its step. The function is Philox4x32-10 (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", 2011), written in torch so that thousands of samples are drawn at once, where they
are needed; numpy's Philox has one stream an object, 40 microseconds each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Counter", "philox"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four words of 32 bits, in int64, for each counter of four words.

    The known answer of the authors' Random123 for zeros:

    >>> [f"{word.item():08x}" for word in philox([torch.zeros(1, dtype=torch.int64)] * 4, (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    a, b, c, d = counter
    low, high = key
    for _ in range(10):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # int64 wraps: its bits are those of the unsigned product
        a, b, c, d = (right >> 32 & _LOW) ^ b ^ low, right & _LOW, (left >> 32 & _LOW) ^ d ^ high, left & _LOW
        low, high = low + _WEYL[0] & _LOW, high + _WEYL[1] & _LOW
    return a, b, c, d


@dataclass(frozen=True)
class Counter:
    """A place in a run that random numbers are drawn for.

    Attributes:
        seed: of the run.
        stage: its name.
        step: number of the step.
        samples: global numbers of the samples of this process's part of the batch.
    """

    seed: int
    stage: str
    step: int
    samples: Sequence[int]

    def normal(self, purpose: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Unit normal numbers ``[samples, *shape]`` (Box and Muller), of the dtype and device of ``like``."""
        count = math.prod(shape)
        uniform = self._uniform(purpose, count + count % 2, like)
        radius = (-2 * uniform[:, 0::2].log()).sqrt()
        angle = 2 * math.pi * uniform[:, 1::2]
        normal = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1)
        return normal[:, :count].reshape(len(self.samples), *shape).to(like)

    def uniform(self, purpose: str, like: Tensor) -> Tensor:
        """Numbers in (0, 1), ``[samples]``, of the dtype and device of ``like``."""
        return self._uniform(purpose, 1, like)[:, 0].to(like)

    def integers(self, purpose: str, below: int) -> Tensor:
        """Whole numbers from 0 to ``below`` - 1, ``[samples]``, on the CPU."""
        return (self._uniform(purpose, 1, torch.zeros(())) * below).long()[:, 0]

    def _uniform(self, purpose: str, count: int, like: Tensor) -> Tensor:
        """``[samples, count]`` in (0, 1), in float64: never 0 or 1, 32 bits of each."""
        digest = hashlib.blake2b(f"{self.seed}\0{self.stage}\0{purpose}".encode(), digest_size=8).digest()
        key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
        block = torch.arange(-(-count // 4), device=like.device)[None]
        sample = torch.as_tensor(list(self.samples), device=like.device)[:, None]
        counter = torch.broadcast_tensors(block, sample & _LOW, torch.tensor(self.step, device=like.device), sample >> 32)
        words = torch.stack(philox(counter, key), -1).flatten(1)[:, :count]
        return (words.double() + 0.5) * 2.0**-32
