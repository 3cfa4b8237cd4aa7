"""The grammar of schemes: how one weight tensor is stored. A scheme's name decodes itself.

=============  ============================================================================================
``fp32``       IEEE single precision
``fp16``       IEEE half precision
``int8``       8-bit integers, one scale for each output channel
``int4g32``    4-bit (2, 4 or 8) integers in blocks of 32 (16 to 256) along the input axis, a scale for each
``uint4g32``   the same with a zero point for each block: asymmetric
``lut6``       6-bit (1 to 8) indices into one table of fp16 values
``lut4g16``    the same with a table for each 16 (4 to 256) output channels
``w8a8``       ``int8`` weights whose products take activations rounded to 8 bits as they come
=============  ============================================================================================

Weights are ``[out, in]`` (a convolution's are flattened to that). Signed integers are symmetric, ``w = scale * code``;
unsigned ones are not, ``w = scale * (code - zero)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from quantization.errors import Complaint, SchemeError

Kind = Literal["float", "integer", "lookup"]
BLOCKS = (16, 32, 64, 128, 256)
GROUPS = (4, 8, 16, 32, 64, 128, 256)
_INTEGER = re.compile(r"^(?P<unsigned>u?)int(?P<bits>[248])(?:g(?P<block>\d+))?$")
_LOOKUP = re.compile(r"^lut(?P<bits>[1-8])(?:g(?P<group>\d+))?$")


@dataclass(frozen=True)
class Scheme:
    """How one tensor is stored.

    Attributes:
        name: the name that decodes itself.
        kind: floating point, integers with scales, or indices into tables.
        bits: bits of one stored value.
        block: values along the input axis that share a scale, none for a whole output channel; of look-up tables: output
            channels that share a table, none for the whole tensor.
        dynamic_activations: whether products round their activations to 8 bits too.
        zero_points: whether each block has a zero point beside its scale.
    """

    name: str
    kind: Kind
    bits: int
    block: int | None = None
    dynamic_activations: bool = False
    zero_points: bool = False

    @property
    def rounds_inputs(self) -> bool:
        """Whether products round their inputs to 8 bits: ``w8a8`` for the tensor, integers in blocks for each block."""
        return self.dynamic_activations or (self.kind == "integer" and self.block is not None)

    def size_bytes(self, shape: tuple[int, ...], scale_bytes: int = 4) -> int:
        """Exact stored size of a weight ``[out, in, ...]``: codes, padded to whole blocks; scales, zero points or tables.

        Zero points are packed like codes, each row of them to whole bytes; tables hold fp16.

        >>> parse_scheme("int4g32").size_bytes((10, 64))
        400
        >>> parse_scheme("fp16").size_bytes((10, 64))
        1280
        >>> parse_scheme("lut6").size_bytes((10, 64))
        608
        """
        rows = shape[0] if shape else 1
        columns = 1
        for size in shape[1:]:
            columns *= size
        if self.kind == "float":
            return rows * columns * self.bits // 8
        if self.kind == "lookup":
            tables = 1 if self.block is None else -(-rows // self.block)
            return -(-rows * columns * self.bits // 8) + tables * 2 * (1 << self.bits)
        blocks = 1 if self.block is None else -(-columns // self.block)
        stored = columns if self.block is None else blocks * self.block
        zeros = -(-blocks * self.bits // 8) if self.zero_points else 0
        return rows * (stored * self.bits // 8 + blocks * scale_bytes + zeros)


def one_of(name: str, patterns: Iterable[str]) -> bool:
    """Whether a scheme's name is one of some, which may be patterns.

    >>> one_of("int4g64", ["int8", "int4g*"]), one_of("int4g64", ["int8", "int4g32"])
    (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def parse_scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        SchemeError: the grammar has no such name.

    >>> parse_scheme("int4g32")
    Scheme(name='int4g32', kind='integer', bits=4, block=32, dynamic_activations=False, zero_points=False)
    """
    if name in ("fp32", "fp16"):
        return Scheme(name, "float", int(name[2:]))
    if name == "w8a8":
        return Scheme(name, "integer", 8, None, dynamic_activations=True)
    if match := _INTEGER.match(name):
        block = int(match["block"]) if match["block"] else None
        unsigned = bool(match["unsigned"])
        if block in BLOCKS or (block is None and match["bits"] == "8" and not unsigned):
            return Scheme(name, "integer", int(match["bits"]), block, zero_points=unsigned)
    if match := _LOOKUP.match(name):
        group = int(match["group"]) if match["group"] else None
        if group is None or group in GROUPS:
            return Scheme(name, "lookup", int(match["bits"]), group)
    blocks, groups = (", ".join(map(str, sizes)) for sizes in (BLOCKS, GROUPS))
    expected = f"fp32, fp16, int8, w8a8; intBgN or uintBgN with B 8, 4 or 2 and N one of {blocks}; lutB or lutBgN with B 1 to 8"
    raise SchemeError(
        "There is no such scheme.", [Complaint("scheme", "unknown", f"{expected} and N one of {groups}", repr(name))]
    )
