"""Parts of tensors: slices, gathered elements, updates.

Definitions: ``iOS15/tensor_transformation.py``, ``iOS15`` to ``iOS17/scatter_gather.py``, ``iOS18/tensor_transformation.py`` of
coremltools' ``defs``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Mask = tuple[bool, ...] | None
_STRICT_OPSET = 7  # from iOS 17 on a negative index is out of bounds; before, it counts from the end


def _ranges(
    shape: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None,
    begin_mask: Mask,
    end_mask: Mask,
    squeeze_mask: Mask,
) -> list[range]:
    """The elements that a slice takes of each axis, as Python counts: a mask stands for a bound that is left out.

    A squeezed axis takes ``begin`` alone.
    """
    none = (False,) * len(shape)
    rows = zip(
        shape, begin, end, stride or (1,) * len(shape), begin_mask or none, end_mask or none, squeeze_mask or none, strict=True
    )
    ranges = []
    for size, first, last, step, no_begin, no_end, squeezed in rows:
        if squeezed:
            ranges.append(range(size)[first : None if first == -1 else first + 1])
        else:
            ranges.append(range(*slice(None if no_begin else first, None if no_end else last, step).indices(size)))
    return ranges


def _ascending(ranges: list[range]) -> tuple[tuple[slice, ...], list[int]]:
    """The same elements as slices that torch takes (it has no negative steps), and the axes to be flipped after."""
    flipped = [axis for axis, taken in enumerate(ranges) if taken.step < 0]
    upward = [taken[::-1] if taken.step < 0 else taken for taken in ranges]
    return tuple(slice(taken.start, max(taken.start, taken.stop), taken.step) for taken in upward), flipped


def _slice_by_index(
    x: Tensor,
    begin: tuple[int, ...],
    end: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    begin_mask: tuple[bool, ...] | None = None,
    end_mask: tuple[bool, ...] | None = None,
    squeeze_mask: tuple[bool, ...] | None = None,
) -> Tensor:
    """``x[begin[0]:end[0]:stride[0], ...]``."""
    slices, flipped = _ascending(_ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask))
    taken = x[slices].flip(flipped)
    kept = [n for i, n in enumerate(taken.shape) if not (squeeze_mask and squeeze_mask[i])]
    return taken.reshape(kept)


def _slice_by_size(x: Tensor, begin: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """``size`` elements from ``begin`` on, all that are left for -1."""
    for axis, (first, length) in enumerate(zip(begin, size, strict=True)):
        start = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


def _slice_update(
    x: Tensor,
    update: Tensor,
    begin: tuple[int, ...],
    end: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    begin_mask: tuple[bool, ...] | None = None,
    end_mask: tuple[bool, ...] | None = None,
    squeeze_mask: tuple[bool, ...] | None = None,
) -> Tensor:
    """``x`` with ``update`` in place of the slice."""
    ranges = _ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    slices, flipped = _ascending(ranges)
    result = x.clone()
    result[slices] = update.reshape([len(taken) for taken in ranges]).flip(flipped)
    return result


def _checked(indices: Tensor, size: int, opset: int) -> Tensor:
    """Indices from 0 on. Out of bounds, a device does what it likes: that is an error here."""
    lowest = 0 if opset >= _STRICT_OPSET else -size
    if indices.numel() and not (lowest <= int(indices.min()) and int(indices.max()) < size):
        got = f"{int(indices.min())} to {int(indices.max())}"
        raise ValueError(f"indices {got} are out of bounds {lowest} to {size - 1}: what a device gives is not defined")
    return torch.where(indices < 0, indices + size, indices).long()


def _gather(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False, *, opset: int
) -> Tensor:
    """``x[..., indices, ...]``: shape ``x.shape[:axis] + indices.shape[batch_dims:] + x.shape[axis + 1:]``."""
    axis %= x.ndim
    places = _checked(indices, x.shape[axis], opset)
    if batch_dims == 0:
        return x.index_select(axis, places.flatten()).reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])
    pairs = zip(x.flatten(0, batch_dims - 1), places.flatten(0, batch_dims - 1), strict=True)
    rows = [
        row.index_select(axis - batch_dims, place.flatten()).reshape(
            row.shape[: axis - batch_dims] + place.shape + row.shape[axis - batch_dims + 1 :]
        )
        for row, place in pairs
    ]
    gathered = torch.stack(rows)
    return gathered.reshape(x.shape[:batch_dims] + gathered.shape[1:])


def _gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False, *, opset: int) -> Tensor:
    """``x[..., indices[..., i, ...], ...]``: the shape of ``indices``."""
    return x.gather(axis, _checked(indices, x.shape[axis], opset))


def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False, *, opset: int) -> Tensor:
    """``x[batch, indices[batch, ..., 0], indices[batch, ..., 1], ...]``."""
    axes = enumerate(indices.unbind(-1))
    places = [_checked(place, x.shape[batch_dims + i], opset) for i, place in axes]
    outer = indices.ndim - 1
    batch = [torch.arange(n).reshape([-1 if k == i else 1 for k in range(outer)]) for i, n in enumerate(x.shape[:batch_dims])]
    return x[(*batch, *places)]


INDEXING: dict[str, Callable[..., Tensor]] = {
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
}
