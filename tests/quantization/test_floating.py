from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.codecs.floating import encode_float, to_fp32
from quantization.errors import SchemeError


def test_fp16_golden_values() -> None:
    # 1/3 in binary16 is 0x3555; 2049 lies between 2048 and 2050 and goes to the even one.
    encoded = encode_float(np.array([1 / 3, 2049.0, -0.0], np.float32), "fp16", "w")
    assert encoded.view(np.uint16).tolist() == [0x3555, 0x6800, 0x8000]


def test_same_type_is_not_copied() -> None:
    weight = np.ones(4, np.float16)
    assert encode_float(weight, "fp16", "w") is weight


def test_every_fp16_number_is_widened_exactly() -> None:
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    for numbers in (half, half.T, half[::3, 1:]):
        wide = to_fp32(numbers)
        assert wide.dtype == np.float32
        assert np.array_equal(wide, numbers.astype(np.float32), equal_nan=True)
        assert np.array_equal(np.signbit(wide), np.signbit(numbers))


@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1))
def test_fp16_error_is_at_most_half_a_unit(values: list[float]) -> None:
    weight = np.array(values, np.float32)
    error = np.abs(encode_float(weight, "fp16", "w").astype(np.float64) - weight)
    # Round to nearest: half a unit in the last of 11 bits, or half the smallest subnormal, 2^-25.
    assert (error <= np.maximum(np.abs(weight.astype(np.float64)) * 2.0**-11, 2.0**-25)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16], ids=["fp16", "fp32", "bf16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_refused_by_name(bad: float, dtype: type) -> None:
    weight = np.zeros((2, 3), dtype)
    weight[1, 2] = bad
    with pytest.raises(SchemeError, match=r"(?s)transformer: x: 1 values are NaN or infinite, the first at \[1, 2\]"):
        encode_float(weight, "fp32", "transformer: x")


def test_too_large_for_fp16_says_what_to_do() -> None:
    with pytest.raises(SchemeError, match=r"too large for fp16; use --precision fp32 \(expected \|w\| <= 65504, got 70000\)"):
        encode_float(np.array([70000.0], np.float32), "fp16", "w")
