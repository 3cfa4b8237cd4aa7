from __future__ import annotations

import numpy as np
import pytest

from quantization.codecs.codec import roundtrip
from quantization.codecs.lookup import decode_lookup, encode_lookup
from quantization.errors import SchemeError
from quantization.schemes import parse_scheme

RNG = np.random.default_rng(0)
NAMES = ["lut1", "lut2", "lut3", "lut4", "lut6", "lut8", "lut2g4", "lut4g16"]


def test_golden_table() -> None:
    weight = np.array([[1.0, 1.0, 2.0, -5.0], [-5.0, -7.0, 1.0, 2.0]], np.float32)
    encoded = encode_lookup(weight, parse_scheme("lut2"), "w")
    assert encoded.tables.tolist() == [[-7, -5, 1, 2]]  # four distinct values: stored as they are
    assert encoded.codes.tolist() == [[2, 2, 3, 1], [1, 0, 2, 3]]
    encoded = encode_lookup(weight, parse_scheme("lut1"), "w")
    assert encoded.tables.tolist() == [[np.float16(-17 / 3), np.float16(7 / 5)]]  # means of the three and of the five


def test_each_group_has_its_own_table() -> None:
    weight = np.repeat(np.arange(8, dtype=np.float32), 6).reshape(8, 6)
    encoded = encode_lookup(weight, parse_scheme("lut2g4"), "w")
    assert encoded.tables.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert np.array_equal(decode_lookup(encoded), weight)


def test_importance_draws_the_table() -> None:
    weight = np.array([[0.0, 1.0, 10.0]], np.float32)
    plain = decode_lookup(encode_lookup(weight, parse_scheme("lut1"), "w"))
    assert plain.tolist() == [[0.5, 0.5, 10.0]]
    heavy = decode_lookup(encode_lookup(weight, parse_scheme("lut1"), "w", np.array([1000.0, 1000.0, 0.001])))
    assert heavy[0, 0] == 0.0
    assert heavy[0, 1] == heavy[0, 2] == np.float16(1.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (10, 64), (4, 6, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_shapes_and_bytes(name: str, shape: tuple[int, ...], dtype: type) -> None:
    scheme = parse_scheme(name)
    weight = RNG.standard_normal(shape).astype(dtype)
    encoded = encode_lookup(weight, scheme, "w")
    assert decode_lookup(encoded).shape == (shape[0], weight[0].size)
    assert encoded.codes.max() < 1 << scheme.bits
    assert -(-encoded.codes.size * scheme.bits // 8) + encoded.tables.nbytes == scheme.size_bytes(shape)
    assert roundtrip(weight, scheme, "w").shape == shape


@pytest.mark.parametrize(("name", "least_db"), [("lut4", 20.1), ("lut6", 31.7), ("lut8", 43.3)])
def test_a_normal_weight(name: str, least_db: float) -> None:
    """Lloyd-Max quantizers of a normal source: 20.2 dB at 16 levels; 31.9 and 43.8 at 64 and 256 (Max 1960 and Panter-Dite).

    Tables rounded to fp16 lose at most 2^-11 of a value, 71 dB: nothing here.
    """
    weight = RNG.standard_normal((64, 1024)).astype(np.float32)
    decoded = roundtrip(weight, parse_scheme(name), "w")
    assert 10 * np.log10(np.sum(weight**2) / np.sum((weight - decoded) ** 2)) > least_db


def test_more_bits_and_more_tables_never_hurt() -> None:
    weight = (RNG.standard_normal((32, 64)) * np.linspace(0.1, 3, 32)[:, None]).astype(np.float16)
    errors = [
        np.sum((weight - roundtrip(weight, parse_scheme(name), "w")) ** 2) for name in ("lut3", "lut4", "lut4g16", "lut4g4")
    ]
    assert errors == sorted(errors, reverse=True)


def test_few_values_and_both_zeros() -> None:
    weight = np.array([[0.0, -0.0, 1.0, 1.0]], np.float16)
    assert np.array_equal(roundtrip(weight, parse_scheme("lut1"), "w"), [[0, 0, 1, 1]])


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "NaN or infinite"), (1e6, "too large for fp16")])
def test_what_cannot_be_stored_is_named(bad: float, message: str) -> None:
    weight = np.ones((2, 32), np.float32)
    weight[1, 5] = bad
    with pytest.raises(SchemeError, match=f"vae: conv: .*{message}"):
        encode_lookup(weight, parse_scheme("lut4"), "vae: conv")
