"""The noise that pictures are made of: drawn from a seed, or given; checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from deploy.errors import Complaint, InputError
from deploy.runtime.torch_noise import LARGEST_SEED, TorchGenerator
from exporters.scales import Size, cropped

Noise = Literal["numpy", "torch"]
"""Whose noise a seed means."""
Shape = tuple[int, ...]


class Generator(Protocol):
    """What draws one picture's noise: numpy's generator, or torch's played in numpy."""

    def standard_normal(self, shape: Shape, dtype: type[np.float32], /) -> np.ndarray: ...


@dataclass(frozen=True)
class PictureNoise:
    """The noise of every picture of one call.

    Attributes:
        latents: what sampling starts from, ``[pictures, channels, height / 8, width / 8]``, fp32.
        generators: one for each picture, at the place where its latents were drawn.
        sizes: rows and columns of the latents at each step.
        step_noise: what a re-noising sampler adds, ``[pictures, steps, channels, height / 8, width / 8]``, fp32, of which smaller
            latents take the first rows and columns. None where the generators draw it.
    """

    latents: np.ndarray
    generators: Sequence[Generator]
    sizes: Sequence[Size]
    step_noise: np.ndarray | None = None

    def size_after(self, step: int) -> Size:
        """Rows and columns of the latents after a step."""
        return self.sizes[min(step + 1, len(self.sizes) - 1)]

    def of_steps(self, picture: int) -> Callable[[int], np.ndarray]:
        """The noise of each step of a picture, ``[1, channels, rows, columns]``, to be asked for in order."""
        channels = self.latents.shape[1]
        if self.step_noise is not None:
            given = self.step_noise[picture]
            return lambda step: cropped(given[step], self.size_after(step))[None]
        return lambda step: self.generators[picture].standard_normal((1, channels, *self.size_after(step)), np.float32)


def generators(seed: int, count: int, noise: Noise) -> list[Generator]:
    """One for each of so many pictures of a seed.

    Raises:
        InputError: the seed is one that torch's generator does not take.
    """
    if noise == "numpy":
        return [np.random.default_rng([seed, i]) for i in range(count)]
    if not 0 <= seed <= LARGEST_SEED + 1 - count:
        complaint = Complaint("--seed", "torch has no such seed", f"0 to {LARGEST_SEED + 1 - count}", str(seed))
        raise InputError("The noise cannot be drawn.", [complaint])
    return [TorchGenerator(seed + i) for i in range(count)]


def drawn_latents(drawers: Sequence[Generator], shape: Shape) -> np.ndarray:
    """The first noise of each generator, ``[pictures, *shape]``, fp32."""
    return np.stack([generator.standard_normal(shape, np.float32) for generator in drawers])


def given_latents(latents: np.ndarray, shape: Shape, first: Size) -> np.ndarray:
    """Given latents in fp32, those of the first step.

    Args:
        latents: to look at.
        shape: of the picture's latents.
        first: rows and columns of the first step's, where they grow: they may be of that size, or are cut to it.

    Raises:
        InputError: they are not ``[pictures, *shape]``, or no finite numbers.
    """
    if isinstance(latents, np.ndarray) and latents.ndim == 1 + len(shape) and latents.shape[1:] == (*shape[:1], *first):
        shape = (*shape[:1], *first)
    if not isinstance(latents, np.ndarray) or latents.ndim != 1 + len(shape) or latents.shape[1:] != shape or not len(latents):
        complaint = Complaint("--latents", "wrong shape", f"[images, {', '.join(map(str, shape))}]", _shape_of(latents))
        raise InputError("The latents do not fit the bundle.", [complaint])
    return cropped(_in_fp32(latents, "--latents", "The latents cannot be used."), first)


def given_step_noise(step_noise: np.ndarray, shape: Shape) -> np.ndarray:
    """Given noise of steps in fp32.

    Raises:
        InputError: it is not of this shape, or no finite numbers.
    """
    if not isinstance(step_noise, np.ndarray) or step_noise.shape != shape:
        complaint = Complaint("step_noise", "wrong shape", str(list(shape)), _shape_of(step_noise))
        raise InputError("The noise of the steps does not fit the bundle.", [complaint])
    return _in_fp32(step_noise, "step_noise", "The noise of the steps cannot be used.")


def _shape_of(array: object) -> str:
    return str(list(array.shape)) if isinstance(array, np.ndarray) else type(array).__name__


def _in_fp32(array: np.ndarray, where: str, headline: str) -> np.ndarray:
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        complaint = Complaint(where, "NaN, infinite or not numbers", "finite floats", str(array.dtype))
        raise InputError(headline, [complaint])
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        largest = float(np.finfo(np.float32).max)
        complaint = Complaint(where, "too large for fp32", f"at most {largest:.3g}", f"{np.abs(array).max():.3g}")
        raise InputError(headline, [complaint])
    return narrow
