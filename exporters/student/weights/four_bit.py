"""Weights that bitsandbytes stored in four bits (nf4, fp4): two codes to a byte, a table of sixteen, a scale for each block.

What is read is what bitsandbytes computes with (``dequantize_4bit``): a table's number times its block's scale, in the type that
the weight had. Scales are numbers, or bytes with a table, scales and an offset of their own. Names and record are those of its
``QuantState.as_dict(packed=True)``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from exporters.student.weights.weight import TORCH_FLOATS

PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_BESIDE = re.compile(rf"(.+)\.(?:{'|'.join(PARTS)}|quant_state\.bitsandbytes__\w+)")
_RECORD = ".quant_state.bitsandbytes__"
Size = Annotated[int, msgspec.Meta(gt=0)]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is written beside a weight's codes."""

    quant_type: str
    blocksize: Size
    dtype: str
    shape: tuple[Size, ...]
    nested_blocksize: Size | None = None
    nested_dtype: str = "float32"
    nested_offset: float = 0.0


def is_beside(name: str, names: Collection[str]) -> bool:
    """Whether a tensor only says how another is stored in four bits, which says so itself.

    >>> names = ["a.weight", "a.weight.absmax", "a.weight.quant_state.bitsandbytes__nf4", "b.weight.absmax"]
    >>> [is_beside(name, names) for name in names]
    [False, True, True, False]
    """
    match = _BESIDE.fullmatch(name)
    return match is not None and match[1] in names and record_of(match[1], names) != ""


def record_of(name: str, names: Collection[str]) -> str:
    """The tensor whose bytes are a weight's record; empty for none."""
    return next((f"{name}{_RECORD}{kind}" for kind in ("nf4", "fp4") if f"{name}{_RECORD}{kind}" in names), "")


@dataclass(frozen=True)
class FourBit:
    """A weight in four bits.

    Attributes:
        kind: ``nf4`` or ``fp4``.
        shape: of the weight.
        dtype: that it is read in.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    _record: _Record

    @classmethod
    def of(cls, record: bytes) -> FourBit:
        """A weight by its record.

        Raises:
            ValueError: it is none that is understood.
        """
        try:
            content = msgspec.json.decode(record, type=_Record)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from error
        for dtype in (content.dtype, content.nested_dtype):
            if dtype not in TORCH_FLOATS:
                raise ValueError(f"the type {dtype!r}")
        return cls(content.quant_type, content.shape, TORCH_FLOATS[content.dtype], content)

    def complaints(self, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Iterator[str]:
        """What does not fit the record.

        Args:
            shapes: shape and type of codes and of what is beside them, by the last part of the name; ``""`` for the codes.
        """
        blocks = math.ceil(math.prod(self.shape) / self._record.blocksize)
        wanted = {"": (math.ceil(math.prod(self.shape) / 2), "U8"), "quant_map": (16, "F32")}
        wanted["absmax"] = (blocks, "F32" if self._record.nested_blocksize is None else "U8")
        if self._record.nested_blocksize is not None:
            wanted["nested_absmax"] = (math.ceil(blocks / self._record.nested_blocksize), "F32")
            wanted["nested_quant_map"] = (256, "F32")
        for part, (count, kind) in wanted.items():
            shape, stored = shapes.get(part, ((0,), "nothing"))
            if (math.prod(shape), stored) != (count, kind):
                yield f"{part or 'codes'}: expected {count} of {kind}, got {math.prod(shape)} of {stored}"

    def decoded(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The weight.

        Args:
            tensors: by the last part of their names; ``""`` for the codes.
        """
        count = math.prod(self.shape)
        scales = _repeated(self._scales(tensors), self._record.blocksize, count)
        table, packed = tensors["quant_map"].reshape(-1), tensors[""].reshape(-1)
        codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:count]
        weight: np.ndarray = (table[codes] * scales).astype(self.dtype).reshape(self.shape)
        return weight

    def _scales(self, tensors: Mapping[str, Any]) -> np.ndarray:
        scales = tensors["absmax"].reshape(-1)
        if self._record.nested_blocksize is None:
            return np.asarray(scales)
        factors = _repeated(tensors["nested_absmax"].reshape(-1), self._record.nested_blocksize, len(scales))
        product: np.ndarray = tensors["nested_quant_map"].reshape(-1)[scales] * factors + np.float32(self._record.nested_offset)
        return product


def _repeated(values: np.ndarray, times: int, count: int) -> np.ndarray:
    return np.repeat(values, times)[:count]
