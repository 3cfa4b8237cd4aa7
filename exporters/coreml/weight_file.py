"""Core ML's weight file, as its writer leaves it: what describes each constant, and where.

The format: :mod:`exporters.coreml.evaluate.blob`, which shares no code with this.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

ALIGNMENT_BYTES = 64
COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<IIQQQ")


class Entry(NamedTuple):
    """What describes a constant: ``start`` and ``size_bytes`` are of its data."""

    sentinel: int
    kind: int
    size_bytes: int
    start: int
    padding_bits: int

    @classmethod
    def of(cls, described: bytes) -> Entry:
        """Of its first bytes."""
        return cls(*_ENTRY.unpack_from(described))

    @property
    def end(self) -> int:
        """Where its data end."""
        return self.start + self.size_bytes

    def __bytes__(self) -> bytes:
        """As they lie in the file."""
        return _ENTRY.pack(*self).ljust(ALIGNMENT_BYTES, b"\0")


def aligned(place: int) -> int:
    """The next place where a description or data may begin.

    >>> aligned(64), aligned(65)
    (64, 128)
    """
    return -(-place // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def entries(file: BinaryIO) -> Iterator[tuple[int, Entry]]:
    """The constants, each after the place of its description.

    Raises:
        EOFError: the file ends before its last description does.
    """
    file.seek(0)
    end = ALIGNMENT_BYTES
    for _ in range(int.from_bytes(file.read(COUNT.size), "little")):
        place = file.seek(aligned(end))
        if len(described := file.read(ALIGNMENT_BYTES)) < ALIGNMENT_BYTES:
            raise EOFError
        entry = Entry.of(described)
        yield place, entry
        end = entry.end
