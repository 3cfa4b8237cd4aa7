"""Latents that grow from step to step (SwD, arXiv 2503.16397), resized in numpy as torch does it; light to import.

A step's clean latents are enlarged to the next step's size before they are noised again. The last size is the picture's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from exporters.choices import UpscaleMode

Size = tuple[int, int]
CUBIC = -0.75  # torch's coefficient of cubic convolution


def step_sizes(scales: Sequence[float], size: Sequence[int], steps: int) -> list[Size]:
    """Rows and columns of the latents of each step.

    Args:
        scales: of each step, as shares of the last; none where all are of one size.
        size: rows and columns of the picture's latents.
        steps: how many there are.

    >>> step_sizes((32, 64, 128), (128, 96), 3), step_sizes((), (8, 8), 2)
    ([(32, 24), (64, 48), (128, 96)], [(8, 8), (8, 8)])
    """
    height, width = size
    if not scales:
        return [(height, width)] * steps
    return [(round(scale / scales[-1] * height), round(scale / scales[-1] * width)) for scale in scales]


def smaller_sizes(scales: Sequence[float], size: Sequence[int], steps: int) -> tuple[Size, ...]:
    """The sizes of the steps' latents that are not the picture's, each once.

    >>> smaller_sizes((32, 64, 64, 128), (16, 16), 4)
    ((4, 4), (8, 8))
    """
    return tuple(dict.fromkeys(one for one in step_sizes(scales, size, steps) if one != tuple(size)))


def denoised_sizes(scales: Sequence[float], sizes: Sequence[Size], steps: int) -> tuple[Size, ...]:
    """The sizes of latents that steps of pictures of several sizes have, but for the first picture's own; each once.

    >>> denoised_sizes((), [(8, 8), (8, 12)], 2), denoised_sizes((1, 2), [(8, 8), (16, 16)], 2)
    (((8, 12),), ((4, 4), (16, 16)))
    """
    denoised = (one for size in sizes for one in (*smaller_sizes(scales, size, steps), size))
    return tuple(dict.fromkeys(size for size in denoised if size != tuple(sizes[0])))


def sized_graph(graph: str, size: Size) -> str:
    """What a graph is called that is made for latents of a size alone, beside that of the picture's own.

    >>> sized_graph("denoiser", (32, 48))
    'denoiser_48x32'
    """
    return f"{graph}_{size[1]}x{size[0]}"


def unsized_graph(name: str) -> tuple[str, Size | None]:
    """The graph that one of :func:`sized_graph` is, and its size; of another itself, and none.

    >>> unsized_graph("denoiser_48x32"), unsized_graph("text_encoder_2")
    (('denoiser', (32, 48)), ('text_encoder_2', None))
    """
    if match := re.fullmatch(r"(denoiser|vae_decoder|vae_encoder)_(\d+)x(\d+)", name):
        return match[1], (int(match[3]), int(match[2]))
    return name, None


def cropped(noise: np.ndarray, size: Size) -> np.ndarray:
    """The first rows and columns of noise: smaller noise of the same law."""
    return np.ascontiguousarray(noise[..., : size[0], : size[1]])


def resized(latents: np.ndarray, size: Size, mode: UpscaleMode) -> np.ndarray:
    """Latents ``[..., rows, columns]`` as ``torch.nn.functional.interpolate`` makes them of another size, fp32."""
    if latents.shape[-2:] == size:
        return latents
    rows, columns = (_weights(old, new, mode) for old, new in zip(latents.shape[-2:], size, strict=True))
    return np.ascontiguousarray(rows @ latents @ columns.T)


@cache
def _weights(old: int, new: int, mode: UpscaleMode) -> np.ndarray:
    """What each of ``new`` places takes of ``old`` ones, ``[new, old]``."""
    places, weights = np.arange(new), np.zeros((new, old), np.float32)
    if mode in ("nearest", "nearest-exact"):
        offset = 0.5 if mode == "nearest-exact" else 0.0
        weights[places, np.minimum(((places + offset) * old / new).astype(int), old - 1)] = 1
        return weights
    centre = (places + 0.5) * old / new - 0.5
    if mode == "bilinear":
        centre = np.maximum(centre, 0)
    first = np.floor(centre).astype(int)
    t = centre - first
    taken = {0: 1 - t, 1: t} if mode == "bilinear" else {-1: _far(1 + t), 0: _near(t), 1: _near(1 - t), 2: _far(2 - t)}
    for shift, share in taken.items():
        np.add.at(weights, (places, np.clip(first + shift, 0, old - 1)), share.astype(np.float32))
    return weights


def _near(x: np.ndarray) -> np.ndarray:
    value: np.ndarray = ((CUBIC + 2) * x - (CUBIC + 3)) * x**2 + 1
    return value


def _far(x: np.ndarray) -> np.ndarray:
    value: np.ndarray = ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
    return value
