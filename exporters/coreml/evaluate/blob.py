"""Core ML's weight file: memory-mapped, every entry checked before it is read, packed elements unpacked.

The format (``mlmodel/src/MILBlob/Blob/StorageFormat.hpp`` of https://github.com/apple/coremltools), little-endian: a header of 64
bytes (u32 count, u32 version = 2), then, aligned to 64 bytes, for each tensor 64 bytes of metadata {u32 sentinel, u32 type,
u64 bytes, u64 offset of the data, u64 padding bits} and the data. A program refers to the metadata.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from exporters.coreml.evaluate.dtypes import BY_CODE, DType
from exporters.errors import Complaint, ExportError

ALIGNMENT_BYTES = 64
VERSION = 2
SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II")
_METADATA = struct.Struct("<IIQQQ")
_NAMES = {dtype.blob: dtype.name for dtype in BY_CODE.values() if dtype.blob is not None}
REMEDY = "write the package again; a copy may be incomplete."


class BlobFile:
    """An open weight file.

    Args:
        path: the file.

    Raises:
        ExportError: it is too short or not of a version that is known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = path.stat().st_size
        if self.size_bytes < ALIGNMENT_BYTES:
            raise self._error("is too short for a weight file", f"at least {ALIGNMENT_BYTES} bytes", f"{self.size_bytes} bytes")
        self._bytes = np.memmap(path, np.uint8, mode="r")
        _, version = _HEADER.unpack_from(self._bytes.data)
        if version != VERSION:
            raise self._error("is of a version that is not known", str(VERSION), str(version))

    def check(self, offset: int, dtype: DType, shape: tuple[int, ...], where: str) -> Complaint | None:
        """What is wrong with the tensor whose metadata lie at ``offset``, if anything.

        Args:
            offset: of the metadata, in bytes from the file's beginning.
            dtype: the type that the program gives it.
            shape: the shape that the program gives it.
            where: names it in the complaint.
        """
        place = f"{where}: {self.path.name} at {offset}"
        if offset % ALIGNMENT_BYTES or offset + _METADATA.size > self.size_bytes:
            expected = f"a multiple of {ALIGNMENT_BYTES} below {self.size_bytes}"
            return Complaint(place, "the offset is out of range", expected, str(offset))
        sentinel, code, stored_bytes, start, padding_bits = _METADATA.unpack_from(self._bytes.data, offset)
        count = math.prod(shape)
        needed_bytes = dtype.size_bytes(count)
        facts = [
            ("there are no metadata", hex(SENTINEL), hex(sentinel)),
            ("another type is stored", dtype.name, _NAMES.get(code, f"type {code}")),
            ("another size is stored", f"{needed_bytes} bytes", f"{stored_bytes} bytes"),
            ("other padding is stored", f"{8 * needed_bytes - count * dtype.bits} bits", f"{padding_bits} bits"),
        ]
        for what, expected, got in facts:
            if expected != got:
                return Complaint(place, what, expected, got)
        if start + stored_bytes > self.size_bytes:
            return Complaint(place, "the data run past the end", f"{start + stored_bytes} bytes", f"{self.size_bytes} bytes")
        return None

    def read(self, offset: int, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        """The checked tensor at ``offset``: a view of the file where nothing is packed, to be copied and not to be kept."""
        _, _, stored_bytes, start, _ = _METADATA.unpack_from(self._bytes.data, offset)
        stored = np.asarray(self._bytes[start : start + stored_bytes])
        return elements(stored, dtype, shape)

    def _error(self, what: str, expected: str, got: str) -> ExportError:
        return ExportError("A Core ML package cannot be read.", [Complaint(str(self.path), what, expected, got)], REMEDY)


def elements(stored: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Stored bytes as an array of ``shape``."""
    if dtype.bits >= 8:
        return stored.view(dtype.array).reshape(shape)
    codes = unpack(stored, dtype.bits, math.prod(shape))
    if dtype.lowest < 0:
        sign = np.uint8(1 << (dtype.bits - 1))
        return ((codes ^ sign).view(np.int8) - np.int8(sign)).reshape(shape)  # two's complement of fewer than 8 bits
    return codes.reshape(shape)


def unpack(stored: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` elements of ``bits`` bits, which follow one another from each byte's least significant bit on.

    Elements may straddle bytes; every three bytes (or one, where the width divides 8) hold a whole number of them.

    >>> unpack(np.array([0b11_000001, 0b0000_1010, 0b000001_00], np.uint8), 6, 4).tolist()
    [1, 43, 0, 1]
    >>> unpack(np.array([0xA5], np.uint8), 4, 2).tolist()
    [5, 10]
    """
    group_bytes = math.lcm(bits, 8) // 8
    padded = np.zeros(-(-len(stored) // group_bytes) * group_bytes, np.uint8)
    padded[: len(stored)] = stored
    words: np.ndarray = padded[::group_bytes]
    if group_bytes > 1:
        words = np.bitwise_or.reduce([padded[i::group_bytes].astype(np.uint32) << np.uint32(8 * i) for i in range(group_bytes)])
    shifts = np.arange(0, 8 * group_bytes, bits, dtype=words.dtype)
    codes: np.ndarray = (words[:, None] >> shifts) & words.dtype.type((1 << bits) - 1)
    return codes.astype(np.uint8).ravel()[:count]
