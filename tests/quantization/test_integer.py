from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.codecs.integer import IntegerTensor, decode_integer, encode_integer
from quantization.errors import SchemeError
from quantization.schemes import parse_scheme

RNG = np.random.default_rng(0)
NAMES = ["int8", "int8g16", "int8g32", "int4g16", "int4g32", "int4g128", "int2g32", "uint8g32", "uint4g32", "uint2g16"]


def error_db(weight: np.ndarray, decoded: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(weight**2) / np.sum((weight - decoded) ** 2)))


def test_golden_codes() -> None:
    # Multiples of 0.5 with -4 the largest: the scale that fits them all is 0.5, -4 on code -8.
    weight = np.array([[-4.0, 3.5, 0.0, 0.5, -0.5, 2.0, 1.0, -1.5] * 2], np.float32)
    encoded = encode_integer(weight, parse_scheme("int4g16"), "w")
    assert encoded.codes.reshape(-1)[:8].tolist() == [-8, 7, 0, 1, -1, 4, 2, -3]
    assert encoded.scales.tolist() == [[0.5]]
    assert np.array_equal(decode_integer(encoded), weight)


def test_the_largest_value_takes_the_longer_end() -> None:
    # +4 is the largest: a negative scale lays it on -8.
    weight = np.array([[4.0, -3.5] + [0.0] * 14], np.float32)
    encoded = encode_integer(weight, parse_scheme("int4g16"), "w")
    assert encoded.scales.tolist() == [[-0.5]]
    assert np.array_equal(decode_integer(encoded), weight)


@pytest.mark.parametrize(("step", "zero"), [(0.5, -8), (-0.5, 7)], ids=["positive", "negative"])
def test_golden_zero_point(step: float, zero: int) -> None:
    # 0 to 7.5 in 16 levels: scale 0.5, the lowest code is zero; 0 to -7.5: the highest.
    weight = np.arange(16, dtype=np.float32)[None] * np.float32(step)
    encoded = encode_integer(weight, parse_scheme("uint4g16"), "w")
    assert encoded.scales.tolist() == [[0.5]]
    assert encoded.zeros is not None
    assert encoded.zeros.tolist() == [[zero]]
    assert np.array_equal(decode_integer(encoded), weight)


def test_zero_points_pay_on_lopsided_blocks() -> None:
    weight = np.abs(RNG.standard_normal((16, 256))).astype(np.float32)
    plain, shifted = (
        error_db(weight, decode_integer(encode_integer(weight, parse_scheme(name), "w"))) for name in ("int4g32", "uint4g32")
    )
    assert shifted > plain + 4  # half the range on each level: one bit, 6 dB, less what searching had won


def test_importance_is_minimised() -> None:
    weight = RNG.standard_normal((16, 64)).astype(np.float32)
    importance = np.where(np.arange(64) % 8 == 0, 100.0, 1.0)
    scheme = parse_scheme("int2g32")
    plain, weighted = (
        np.sum(importance * (weight - decode_integer(encode_integer(weight, scheme, "w", share))) ** 2)
        for share in (None, importance)
    )
    assert weighted < 0.9 * plain


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (5, 64), (4, 6, 3, 3)], ids=str)
def test_shapes_and_bytes(name: str, shape: tuple[int, ...]) -> None:
    scheme = parse_scheme(name)
    weight = RNG.standard_normal(shape).astype(np.float32)
    encoded = encode_integer(weight, scheme, "w")
    assert decode_integer(encoded).shape == (shape[0], weight[0].size)
    zeros = 0 if encoded.zeros is None else shape[0] * -(-encoded.zeros.shape[1] * scheme.bits // 8)
    assert encoded.codes.size * scheme.bits // 8 + encoded.scales.nbytes + zeros == scheme.size_bytes(shape)
    low = -(1 << (scheme.bits - 1))
    assert encoded.codes.min() >= low
    assert encoded.codes.max() <= -low - 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=16, max_size=16),
    st.sampled_from([name for name in NAMES if not name.startswith("u")]),
)
def test_no_worse_than_rounding_to_nearest(values: list[float], name: str) -> None:
    """One candidate is round-to-nearest over the full range; refitting and choosing can only lower the squared error.

    Of a largest value of either sign, the negative one is laid on the longer end."""
    weight, scheme = np.array([values], np.float32), parse_scheme(name)
    decoded = decode_integer(encode_integer(weight, scheme, "w"))
    low = -(1 << (scheme.bits - 1))
    largest = weight.max() if weight.max() > -weight.min() else weight.min()
    scale = np.float32(largest / low)
    codes = np.clip(np.rint(weight / scale), low, -low - 1) if scale else np.zeros_like(weight)
    nearest = np.sum((weight - codes * scale).astype(np.float64) ** 2)
    ours = np.sum((weight - decoded).astype(np.float64) ** 2)
    # Both sums are of fp32 products: equal up to their rounding, 16 terms of 2^-24.
    assert ours <= nearest + 16 * 2.0**-23 * np.sum(weight.astype(np.float64) ** 2) + 1e-30


def test_searching_scales_pays() -> None:
    """A normal weight in int4g32: largest-value scales reach 20.3 dB (7 levels up) and 21.3 dB (8 down); searched ones more."""
    weight = RNG.standard_normal((64, 1024)).astype(np.float32)
    assert error_db(weight, decode_integer(encode_integer(weight, parse_scheme("int4g32"), "w"))) > 21.6


def test_eight_bits_of_a_normal_weight() -> None:
    """Half a step of range/256 over a spread of range/7: error 7/(256 sqrt(12)) of the signal, 42 dB; fewer for longer rows."""
    weight = RNG.standard_normal((64, 1024)).astype(np.float32)
    assert error_db(weight, decode_integer(encode_integer(weight, parse_scheme("int8"), "w"))) > 41


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_stored_again(name: str) -> None:
    """Bit for bit; of a scale with all of fp32's digits the products are rounded, and another one is found."""
    weight, scheme = (3 * RNG.standard_normal((40, 200))).astype(np.float32), parse_scheme(name)
    first = encode_integer(weight, scheme, "w")
    stored = decode_integer(first)
    again = encode_integer(stored, scheme, "w")
    signs = np.sign(again.scales * first.scales)[..., None]  # a block of largest values of both signs may be turned round
    assert np.array_equal(again.codes * signs, first.codes)
    assert np.array_equal(decode_integer(again), stored)
    assert not np.array_equal(stored, weight)
    long = IntegerTensor(first.codes, first.scales * np.float32(1 + 1 / 3), first.columns, first.zeros)
    assert not np.array_equal(decode_integer(encode_integer(decode_integer(long), scheme, "w")), decode_integer(long))


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name: str) -> None:
    assert not decode_integer(encode_integer(np.zeros((2, 40), np.float16), parse_scheme(name), "w")).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_weights_are_named(bad: float) -> None:
    weight = np.ones((2, 32), np.float32)
    weight[1, 5] = bad
    with pytest.raises(SchemeError, match=r"vae: conv: 1 values are NaN or infinite, the first at \[1, 5\]"):
        encode_integer(weight, parse_scheme("int4g32"), "vae: conv")
