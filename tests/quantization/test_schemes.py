from __future__ import annotations

import pytest

from quantization.errors import SchemeError
from quantization.schemes import parse_scheme


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("fp32", (3, 5), 60),
        ("fp16", (4, 3, 2, 2), 96),
        ("int8", (4, 10), 4 * 10 + 4 * 4),
        ("w8a8", (4, 10), 4 * 10 + 4 * 4),
        ("int8g16", (4, 33), 4 * 3 * 16 + 4 * 3 * 4),
        ("int4g32", (10, 64), 10 * 32 + 10 * 2 * 4),
        ("int2g256", (2, 256), 2 * 64 + 2 * 4),
        ("uint4g32", (3, 96), 3 * (48 + 3 * 4 + 2)),
        ("uint8g32", (3, 96), 3 * (96 + 3 * 4 + 3)),
        ("lut6", (5, 7), 27 + 64 * 2),
        ("lut4g16", (33, 10), 165 + 3 * 16 * 2),
    ],
)
def test_size_is_exact(name: str, shape: tuple[int, ...], size: int) -> None:
    assert parse_scheme(name).size_bytes(shape) == size


@pytest.mark.parametrize(
    "name",
    ["int4", "int8g33", "int3g32", "fp8", "w8a16", "INT8", "", "int8g", "int4g32 ", "uint8", "lut9", "lut0", "lut4g5", "lut"],
)
def test_names_outside_the_grammar(name: str) -> None:
    with pytest.raises(SchemeError, match=r"unknown \(expected fp32, fp16, int8, w8a8; intBgN .* got"):
        parse_scheme(name)
