"""The compiled search against its definition, in numpy and fp64."""

from __future__ import annotations

import numpy as np
import pytest

from quantization.codecs.blocks import candidates, encode_blocks
from quantization.schemes import Scheme, parse_scheme


def least_error(block: np.ndarray, share: np.ndarray, scheme: Scheme) -> float:
    """The least weighted squared error that any candidate's codes leave, with their best scale."""
    low, high = -(1 << (scheme.bits - 1)), (1 << (scheme.bits - 1)) - 1
    errors = []
    for fraction in candidates(scheme):
        zero = 0.0
        if scheme.zero_points:
            bottom, top = min(block.min(), 0), max(block.max(), 0)
            scale = (top - bottom) * fraction / (high - low)
            zero = float(np.clip(np.rint(low - bottom * fraction / scale), low, high))
        else:
            scale = block[np.abs(block).argmax()] * fraction / low
        codes = np.clip(np.rint(block / scale) + zero, low, high) - zero
        fitted = (share * block * codes).sum() / (share * codes**2).sum()
        errors.append(float((share * (block - fitted * codes) ** 2).sum()))
    return min(errors)


@pytest.mark.parametrize("name", ["int8", "int8g16", "int4g32", "int2g64", "uint8g32", "uint4g16", "uint2g32"])
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_no_candidate_is_better(name: str, weighted: bool) -> None:
    rng = np.random.default_rng(5)
    scheme = parse_scheme(name)
    size = scheme.block or 80
    weights = (rng.standard_normal((7, 3, size)) * rng.exponential(1, (7, 3, 1)) + 0.2).astype(np.float32)
    shares = rng.exponential(1, (3, size)).astype(np.float32) if weighted else np.ones((3, size), np.float32)
    codes, scales, zeros = encode_blocks(weights, scheme, shares if weighted else None)
    decoded = scales[..., None].astype(np.float64) * (codes.astype(np.float64) - zeros[..., None])
    errors = (shares * (weights - decoded) ** 2).sum(axis=-1)
    best = np.array([[least_error(weights[r, b].astype(float), shares[b], scheme) for b in range(3)] for r in range(7)])
    # Candidates are told apart by sums in fp32, of 80 terms in at least 8 lanes: 13 roundings of 2^-24 of the energy each.
    energy = (shares * weights.astype(np.float64) ** 2).sum(axis=-1)
    tolerance = 2**-20 * energy
    assert (np.abs(errors - best) <= tolerance).all()
    worse = (shares * (weights - 1.01 * decoded) ** 2).sum(axis=-1)
    assert (np.abs(worse - best) > tolerance).all()  # the comparison can fail


def test_blocks_of_zeros_and_of_next_to_nothing() -> None:
    weights = np.zeros((1, 3, 16), np.float32)
    weights[0, 1] = 1e-45  # the least that fp32 can tell from zero: its scale has no inverse
    weights[0, 2, 3] = 1e-30
    codes, scales, zeros = encode_blocks(weights, parse_scheme("int4g16"))
    decoded = scales[..., None] * (codes - zeros[..., None])
    assert np.isfinite(scales).all()
    assert np.abs(decoded - weights)[0, :2].max() <= 1e-44
    assert decoded[0, 2, 3] == pytest.approx(1e-30, rel=2**-16)  # of a scale's 16 bits, half of the last
