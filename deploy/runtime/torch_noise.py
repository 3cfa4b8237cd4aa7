"""Normal numbers as torch's CPU generator draws them, but for the last digits of log, sine and cosine; without torch.

``torch.randn`` in fp32 (ATen: ``native/cpu/DistributionTemplates.h``, ``core/DistributionsHelper.h``,
``core/MT19937RNGEngine.h``) runs a Mersenne Twister, started from the low 32 bits of the seed, and takes one of two ways from its
bits to normals:

* 16 numbers or more: all of them become uniforms of 24 bits, and each block of 16 is turned by the Box-Muller transform, its
  first half the radii and its second the angles. Where the count is no multiple of 16, the last 16 places are drawn once more.
* fewer: each number takes half of a Box-Muller pair in fp64 of two uniforms of 53 bits; the other half waits for the next such
  call.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LEAST_SEED, LARGEST_SEED = -(1 << 63), (1 << 64) - 1  # what torch.Generator.manual_seed takes
BLOCK = 16


class TorchGenerator:
    """``torch.Generator().manual_seed(seed)`` as far as ``torch.randn`` in fp32 goes.

    Args:
        seed: :data:`LEAST_SEED` to :data:`LARGEST_SEED`; a negative one counts back from 2^64, as in torch.
    """

    def __init__(self, seed: int) -> None:
        # The legacy seeding is the twister's own, which torch has too; the generator's present one hashes the seed first.
        state: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._bits = np.random.MT19937()
        self._bits.state = state
        self._waiting: float | None = None

    def standard_normal(self, shape: tuple[int, ...], dtype: type[np.float32] = np.float32) -> np.ndarray:
        """``torch.randn(shape)``.

        >>> TorchGenerator(0).standard_normal((2,)).round(4)
        array([ 1.541 , -0.2934], dtype=float32)
        """
        size = math.prod(shape)
        drawn = self._blocks(size) if size >= BLOCK else np.asarray([self._single() for _ in range(size)])
        return drawn.astype(dtype).reshape(shape)

    def _blocks(self, size: int) -> np.ndarray:
        uniforms, whole = self._uniforms(size), size - size % BLOCK
        normals = np.empty(size, np.float32)
        normals[:whole] = _box_muller(uniforms[:whole])
        if whole != size:
            normals[-BLOCK:] = _box_muller(self._uniforms(BLOCK))
        return normals

    def _uniforms(self, size: int) -> np.ndarray:
        bits: np.ndarray = self._bits.random_raw(size) & 0xFFFFFF
        return bits.astype(np.float32) * np.float32(2.0**-24)

    def _single(self) -> float:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            return waiting
        angle, radius = 2 * math.pi * self._wide_uniform(), math.sqrt(-2 * math.log1p(-self._wide_uniform()))
        self._waiting = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _wide_uniform(self) -> float:
        high, low = self._bits.random_raw(2).tolist()
        return float(((high << 32 | low) & ((1 << 53) - 1)) * 2.0**-53)


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
    """In fp32 where torch rounds to it; whole blocks."""
    first, second = uniforms.reshape(-1, 2, BLOCK // 2).transpose(1, 0, 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - first))
    angle = np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
