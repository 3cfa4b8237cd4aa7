"""The element types of MIL, Core ML's program language: their numbers in its two file formats, and their widths.

Sources: ``mlmodel/format/MIL.proto`` (``DataType``) and ``mlmodel/src/MILBlob/Blob/BlobDataType.hpp`` of
https://github.com/apple/coremltools.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DType:
    """One element type.

    Args:
        name: as MIL's ``cast`` spells it.
        kind: ``float``, ``int``, ``bool`` or ``string``.
        bits: width of a stored element; less than 8 for packed types.
        array: numpy's type for the (unpacked) elements.
        blob: the type's number in weight files, where it has one.
    """

    name: str
    kind: str
    bits: int
    array: np.dtype[np.generic]
    blob: int | None = None

    @property
    def lowest(self) -> int:
        """The least value of an integer type."""
        return 0 if self.name.startswith("u") else -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The greatest value of an integer type."""
        return self.lowest + (1 << self.bits) - 1

    def size_bytes(self, count: int) -> int:
        """Bytes of ``count`` stored elements; packed types fill whole bytes.

        >>> BY_NAME["uint6"].size_bytes(3), BY_NAME["fp16"].size_bytes(3)
        (3, 6)
        """
        return -(-count * self.bits // 8)


def _type(name: str, kind: str, bits: int, array: type[np.generic], blob: int | None = None) -> DType:
    return DType(name, kind, bits, np.dtype(array), blob)


# By number in MIL.proto. FLOAT64, BFLOAT16 and the 8-bit floats exist there, but no operation of a package takes them.
BY_CODE: dict[int, DType] = {
    1: _type("bool", "bool", 8, np.bool_),
    2: _type("string", "string", 0, np.object_),
    10: _type("fp16", "float", 16, np.float16, 1),
    11: _type("fp32", "float", 32, np.float32, 2),
    21: _type("int8", "int", 8, np.int8, 4),
    22: _type("int16", "int", 16, np.int16, 6),
    23: _type("int32", "int", 32, np.int32, 14),
    24: _type("int64", "int", 64, np.int64),
    25: _type("int4", "int", 4, np.int8, 8),
    31: _type("uint8", "int", 8, np.uint8, 3),
    32: _type("uint16", "int", 16, np.uint16, 7),
    33: _type("uint32", "int", 32, np.uint32, 15),
    35: _type("uint4", "int", 4, np.uint8, 11),
    36: _type("uint2", "int", 2, np.uint8, 10),
    37: _type("uint1", "int", 1, np.uint8, 9),
    38: _type("uint6", "int", 6, np.uint8, 13),
    39: _type("uint3", "int", 3, np.uint8, 12),
}
BY_NAME: dict[str, DType] = {dtype.name: dtype for dtype in BY_CODE.values()}
