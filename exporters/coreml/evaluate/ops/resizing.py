"""Pictures made larger or smaller: the last two axes.

Definitions: ``iOS15/image_resizing.py``, ``iOS16/image_resizing.py`` of coremltools' ``defs``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _nearest(x: Tensor, axis: int, size: int, scale: float) -> Tensor:
    """Element ``floor(i / scale)`` of the axis for each ``i``."""
    places = (torch.arange(size, dtype=torch.float64) / scale).floor().long()
    return x.index_select(axis, places.clamp(max=x.shape[axis] - 1))


def _upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    for axis, scale in ((-2, scale_factor_height), (-1, scale_factor_width)):
        x = _nearest(x, axis, math.floor(x.shape[axis] * scale), scale)
    return x


def _resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    for axis, size in ((-2, target_size_height), (-1, target_size_width)):
        x = _nearest(x, axis, size, size / x.shape[axis])
    return x


def _upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Between the two neighbours of each grid point; the scale is that of the rounded sizes."""
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise ValueError("align_corners and half_pixel_centers exclude one another")
    for axis, scale in ((-2, scale_factor_height), (-1, scale_factor_width)):
        x = _linear(x, axis, math.floor(x.shape[axis] * scale), align_corners, half)
    return x


def _linear(x: Tensor, axis: int, size: int, align_corners: bool, half: bool) -> Tensor:
    given = x.shape[axis]
    i = torch.arange(size, dtype=torch.float64)
    spacing = (given - 1) / max(size - 1, 1) if align_corners else given / size
    grid = ((i + 0.5) * spacing - 0.5 if half else i * spacing).clamp(0, given - 1)
    below = grid.floor().long()
    share = (grid - below).float().reshape([-1 if k == x.ndim + axis else 1 for k in range(x.ndim)])
    return torch.lerp(x.index_select(axis, below), x.index_select(axis, (below + 1).clamp(max=given - 1)), share)


def _pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


def _pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


RESIZING: dict[str, Callable[..., Tensor]] = {
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "resize_nearest_neighbor": _resize_nearest_neighbor,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest_neighbor,
}
