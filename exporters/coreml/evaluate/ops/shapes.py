"""Tensors rearranged, joined, split, padded, made.

Definitions: ``iOS15/tensor_transformation.py``, ``iOS15/tensor_operation.py``, ``iOS16``, ``iOS17`` of coremltools' ``defs``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_RIGHT_ALIGNED_OPSET = 7  # from iOS 17 on a 0 in a new shape is matched from the right


def _reshape(x: Tensor, shape: tuple[int, ...], *, opset: int) -> Tensor:
    """0 takes the size that ``x`` has there, -1 what is left."""
    old = list(x.shape)
    if 0 in shape and opset < _RIGHT_ALIGNED_OPSET and len(shape) != len(old):
        raise ValueError(f"a 0 in {list(shape)} needs the rank of {old}")
    missing = len(shape) - len(old)
    new = [(old[i - missing] if i >= missing else 1) if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(new)


def _transpose(x: Tensor, perm: tuple[int, ...]) -> Tensor:
    return x.permute(perm)


def _expand_dims(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """New axes, counted in the result."""
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """Axes of another size than 1 stay, like torch's."""
    return x.squeeze() if axes is None else x.squeeze(axes)


def _reverse(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    return x.flip(tuple(range(x.ndim)) if axes is None else axes)


def _concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """One after another; interleaved, the first of each, then the second of each."""
    if values[0].ndim == 0:
        return torch.stack(values)
    if interleave:
        return torch.stack(values, axis % values[0].ndim + 1).flatten(axis % values[0].ndim, axis % values[0].ndim + 1)
    return torch.cat(values, axis)


def _stack(values: list[Tensor], axis: int) -> Tensor:
    return torch.stack(values, axis)


def _split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: tuple[int, ...] | None = None) -> tuple[Tensor, ...]:
    """Into parts of ``split_sizes``, or ``num_splits`` equal ones."""
    if split_sizes is not None:
        return tuple(torch.split(x, list(split_sizes), axis))
    if not num_splits or x.shape[axis] % num_splits:
        raise ValueError(f"{x.shape[axis]} does not divide into {num_splits} parts")
    return tuple(torch.split(x, x.shape[axis] // num_splits, axis))


def _tile(x: Tensor, reps: tuple[int, ...]) -> Tensor:
    return x.tile(reps)


def _pad(x: Tensor, pad: tuple[int, ...], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """``pad`` is (before, after) for each of the last axes."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=constant_val)
    if mode not in {"reflect", "replicate"}:
        raise ValueError(f"pad has no mode {mode}")
    for axis, (before, after) in enumerate(pairs, x.ndim - len(pairs)):
        last = x.shape[axis] - 1
        places = torch.arange(-before, last + 1 + after)
        if mode == "reflect" and max(before, after) > last:
            raise ValueError(f"reflection needs more than {max(before, after)} elements, got {last + 1}")
        places = places.clamp(0, last) if mode == "replicate" else last - (last - places.abs()).abs()
        x = x.index_select(axis, places)
    return x


def _fill(shape: tuple[int, ...], value: Tensor | None = None) -> Tensor:
    return (torch.zeros(()) if value is None else value).expand(shape)


def _fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return _fill(tuple(ref_tensor.shape), value)


def _shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


def _range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    count = max(0, math.ceil((end.item() - start.item()) / step.item()))
    return start + step * torch.arange(count, dtype=start.dtype)


def _band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zeros but for so many diagonals below and above the main one; all of them for a negative number."""
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    kept = ((rows - columns <= lower) | (lower < 0)) & ((columns - rows <= upper) | (upper < 0))
    return x.masked_fill(~kept, 0)


def _one_hot(
    indices: Tensor, one_hot_vector_size: int, axis: int = -1, on_value: Tensor | None = None, off_value: Tensor | None = None
) -> Tensor:
    """``on_value`` where the new axis' place is the index; an index out of range is nowhere."""
    hot = indices.unsqueeze(-1) == torch.arange(one_hot_vector_size)
    on = torch.ones((), dtype=torch.int32) if on_value is None else on_value
    off = torch.zeros((), dtype=on.dtype) if off_value is None else off_value
    return torch.where(hot, on, off).movedim(-1, axis)


SHAPES: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "band_part": _band_part,
    "concat": _concat,
    "expand_dims": _expand_dims,
    "fill": _fill,
    "fill_like": _fill_like,
    "one_hot": _one_hot,
    "pad": _pad,
    "range_1d": _range_1d,
    "reshape": _reshape,
    "reverse": _reverse,
    "shape": _shape,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
