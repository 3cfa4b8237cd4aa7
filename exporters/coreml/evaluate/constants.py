"""Constants as the program's ``const`` and ``constexpr_*`` operations give them: read, unpacked, decompressed, not kept.

Decompression follows the definitions in coremltools (``converters/mil/mil/ops/defs/iOS16/constexpr_ops.py`` and
``iOS18/compression.py``), in numpy on the stored types: products are computed in 32 bits and rounded once to the declared type.
A decompressed weight is the same whatever the precision of the evaluation. Each function's parameters are the operation's, the
forms of iOS 16 (a flat array and ``shape``) and of iOS 18 side by side.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import numpy as np

from exporters.coreml.evaluate.blob import unpack
from exporters.coreml.evaluate.dtypes import BY_NAME
from exporters.coreml.evaluate.program import Constant, Operation
from exporters.errors import Complaint, ExportError

Decoder = Callable[..., np.ndarray | tuple[np.ndarray, ...]]


class Constants:
    """The program's constants by name.

    Args:
        operations: its operations; those that give no constant are passed over.
    """

    def __init__(self, operations: tuple[Operation, ...]) -> None:
        self._source: Mapping[str, tuple[Operation, int]] = {
            port.name: (operation, i)
            for operation in operations
            if operation.is_constant
            for i, port in enumerate(operation.outputs)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._source

    def read(self, name: str) -> np.ndarray:
        """Decompress one constant; nothing of it is kept.

        Raises:
            ExportError: its parts do not fit one another.
        """
        operation, i = self._source[name]
        arguments = {parameter: self._argument(bound[0]) for parameter, bound in operation.arguments.items()}
        try:
            results = DECODERS[operation.kind](**arguments)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:  # what numpy raises when parts do not fit
            raise ExportError("A constant cannot be decompressed.", [Complaint(str(operation), str(error))]) from error
        result, port = (results[i] if isinstance(results, tuple) else results), operation.outputs[i]
        if result.shape != port.shape or result.dtype != port.dtype.array:
            expected, got = f"{port.dtype.name} {list(port.shape)}", f"{result.dtype} {list(result.shape)}"
            raise ExportError("A constant cannot be decompressed.", [Complaint(str(operation), "wrong result", expected, got)])
        return result

    def _argument(self, bound: str | Constant) -> np.ndarray:
        return self.read(bound) if isinstance(bound, str) else bound.read()


def _const(val: np.ndarray) -> np.ndarray:
    return val


def _cast(source_val: np.ndarray, output_dtype: np.ndarray) -> np.ndarray:
    return source_val.astype(BY_NAME[output_dtype.item()].array)


def _affine_dequantize(quantized_data: np.ndarray, zero_point: np.ndarray, scale: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """``scale * (quantized_data - zero_point)``, each a scalar or a vector along ``axis``."""
    along = [1] * quantized_data.ndim
    along[int(axis)] = -1
    centred = quantized_data.astype(np.float32) - zero_point.astype(np.float32).reshape(along if zero_point.ndim else ())
    return (centred * scale.astype(np.float32).reshape(along if scale.ndim else ())).astype(scale.dtype)


def _blockwise_shift_scale(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None) -> np.ndarray:
    """``scale * (data - offset)``; each scale and offset serves a block of ``data.shape[i] / scale.shape[i]`` along axis i."""
    blocks, ones = _blocked(data.shape, scale.shape)
    values = data.reshape(blocks).astype(np.float32)
    if offset is not None:
        values -= offset.reshape(ones).astype(np.float32)
    values *= scale.reshape(ones).astype(np.float32)
    return values.astype(scale.dtype).reshape(data.shape)


def _lut_to_dense(
    indices: np.ndarray, lut: np.ndarray, vector_axis: np.ndarray | None = None, shape: np.ndarray | None = None
) -> np.ndarray:
    """Look each index up in its block's table.

    iOS 16: ``indices`` are packed bytes of ``log2(len(lut))`` bits each, and ``shape`` the result's. iOS 18: ``lut`` is
    ``[*blocks, entries, vector]``; vectors are laid along ``vector_axis``.
    """
    if shape is not None:
        bits = lut.size.bit_length() - 1
        if bits < 1 or lut.shape != (1 << bits,):
            raise ValueError(f"a table of {list(lut.shape)} is not one of 2, 4, 16, 64 or 256 entries")
        return np.take(lut, unpack(indices, bits, math.prod(shape.tolist()))).reshape(shape)
    entries, vector = lut.shape[-2:]
    if int(indices.max(initial=0)) >= entries:
        raise ValueError(f"index {int(indices.max())} is out of its table of {entries}")
    blocks, ones = _blocked(indices.shape, lut.shape[:-2])
    places: np.ndarray = indices.reshape(blocks)
    if math.prod(ones) > 1:
        places = places + entries * np.arange(math.prod(ones), dtype=np.int32).reshape(ones)
    if vector == 1:
        return np.take(lut, places).reshape(indices.shape)
    if vector_axis is None:
        raise ValueError(f"vectors of {vector} need a vector_axis")
    axis = int(vector_axis) % indices.ndim
    vectors = np.take(lut.reshape(-1, vector), places, axis=0).reshape(*indices.shape, vector)
    widened = [size * vector if i == axis else size for i, size in enumerate(indices.shape)]
    return np.moveaxis(vectors, -1, axis + 1).reshape(widened)


def _sparse_to_dense(nonzero_data: np.ndarray, mask: np.ndarray, shape: np.ndarray | None = None) -> np.ndarray:
    """Values where the mask is set, zeros elsewhere; up to iOS 17 the mask is packed bytes."""
    if shape is not None:
        mask = unpack(mask, 1, math.prod(shape.tolist())).reshape(shape)
    dense = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def _lut_to_sparse(
    indices_mask: np.ndarray, indices_nonzero_data: np.ndarray, lut: np.ndarray, vector_axis: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The mask (widened by vectors) and the looked-up values where it is set."""
    dense = _lut_to_dense(_sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    vector = lut.shape[-1]
    mask = indices_mask if vector == 1 or vector_axis is None else np.repeat(indices_mask, vector, int(vector_axis))
    return mask, dense[mask != 0]


def _sparse_blockwise_shift_scale(
    data_mask: np.ndarray, nonzero_data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The mask and the dequantized values where it is set."""
    dense = _blockwise_shift_scale(_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def _blocked(shape: tuple[int, ...], counts: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Shapes ``[count, block, count, block, ...]`` for the elements and ``[count, 1, count, 1, ...]`` for what blocks share.

    >>> _blocked((6, 4), (2, 1))
    ([2, 3, 1, 4], [2, 1, 1, 1])
    """
    if len(shape) != len(counts) or any(count < 1 or size % count for size, count in zip(shape, counts, strict=True)):
        raise ValueError(f"{list(shape)} does not divide into {list(counts)} blocks")
    pairs = list(zip(shape, counts, strict=True))
    return [n for size, count in pairs for n in (count, size // count)], [n for _, count in pairs for n in (count, 1)]


DECODERS: dict[str, Decoder] = {
    "const": _const,
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
PARAMETERS: dict[str, Mapping[str, inspect.Parameter]] = {
    kind: inspect.signature(decoder).parameters for kind, decoder in DECODERS.items()
}
