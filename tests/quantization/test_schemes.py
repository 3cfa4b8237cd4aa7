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
    ],
)
def test_size_is_exact(name: str, shape: tuple[int, ...], size: int) -> None:
    assert parse_scheme(name).size_bytes(shape) == size


@pytest.mark.parametrize("name", ["int4", "int8g33", "int3g32", "fp8", "w8a16", "INT8", "", "int8g", "int4g32 "])
def test_names_outside_the_grammar(name: str) -> None:
    with pytest.raises(SchemeError, match=r"unknown \(expected fp32, fp16, int8, w8a8, or int8gN, .* got"):
        parse_scheme(name)
