"""The grammar of schemes: how one weight tensor is stored. A scheme's name decodes itself.

=============  ============================================================================================
``fp32``       IEEE single precision
``fp16``       IEEE half precision
``int8``       8-bit integers, one scale for each output channel
``int4g32``    4-bit (2, 4 or 8) integers in blocks of 32 (16 to 256) along the input axis, a scale for each
``w8a8``       ``int8`` weights whose products take activations rounded to 8 bits as they come
=============  ============================================================================================

Weights are ``[out, in]`` (a convolution's are flattened to that). Integer schemes are symmetric: ``w = scale * code``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from quantization.errors import Complaint, SchemeError

Kind = Literal["float", "integer"]
BLOCKS = (16, 32, 64, 128, 256)
_INTEGER = re.compile(r"^int(?P<bits>[248])(?:g(?P<block>\d+))?$")


@dataclass(frozen=True)
class Scheme:
    """How one tensor is stored.

    Attributes:
        name: the name that decodes itself.
        kind: floating point, or integers with scales.
        bits: bits of one stored value.
        block: values along the input axis that share a scale; none for a whole output channel.
        dynamic_activations: whether products round their activations to 8 bits too.
    """

    name: str
    kind: Kind
    bits: int
    block: int | None = None
    dynamic_activations: bool = False

    def size_bytes(self, shape: tuple[int, ...], scale_bytes: int = 4) -> int:
        """Exact stored size of a weight ``[out, in, ...]``: codes, padded to whole blocks, and scales.

        >>> parse_scheme("int4g32").size_bytes((10, 64))
        400
        >>> parse_scheme("fp16").size_bytes((10, 64))
        1280
        """
        rows = shape[0] if shape else 1
        columns = 1
        for size in shape[1:]:
            columns *= size
        if self.kind == "float":
            return rows * columns * self.bits // 8
        blocks = 1 if self.block is None else -(-columns // self.block)
        stored = columns if self.block is None else blocks * self.block
        return rows * (stored * self.bits // 8 + blocks * scale_bytes)


def parse_scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        SchemeError: the grammar has no such name.

    >>> parse_scheme("int4g32")
    Scheme(name='int4g32', kind='integer', bits=4, block=32, dynamic_activations=False)
    """
    if name in ("fp32", "fp16"):
        return Scheme(name, "float", int(name[2:]))
    if name == "w8a8":
        return Scheme(name, "integer", 8, None, dynamic_activations=True)
    match = _INTEGER.match(name)
    if match and match["block"] is None and match["bits"] == "8":
        return Scheme(name, "integer", 8)
    if match and match["block"] is not None and int(match["block"]) in BLOCKS:
        return Scheme(name, "integer", int(match["bits"]), int(match["block"]))
    expected = f"fp32, fp16, int8, w8a8, or int8gN, int4gN, int2gN with N one of {', '.join(map(str, BLOCKS))}"
    raise SchemeError("There is no such scheme.", [Complaint("scheme", "unknown", expected, repr(name))])
