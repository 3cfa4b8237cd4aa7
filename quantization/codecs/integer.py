"""Symmetric integers with scales, per output channel or per block along the input axis.

Scales are searched, not taken from the largest value. For codes ``q`` of a block ``w``, the best scale is the least-squares
fit ``<w, q> / <q, q>``, with error ``|w|^2 - <w, q>^2 / <q, q>``. Each candidate scale rounds the block to its codes; the
candidate whose codes fit best wins, with its refitted scale. Candidates shrink the range from the block's largest value,
which is laid on the longer, negative end of the two's-complement range (-8 of -8..7), sign included: with few bits that
end is worth a twelfth of the range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantization.codecs.floating import require_finite
from quantization.schemes import Scheme

# Fractions of the range that candidates keep. For a normal block of 32 the optimum of 4 bits lies near 0.9, of 2 bits near 0.7;
# at 8 bits clipping hardly ever pays.
CANDIDATES = {8: (1.0, 0.97), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75), 2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45)}
CHUNK_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class IntegerTensor:
    """An encoded weight.

    Attributes:
        codes: int8 ``[out, blocks, block]``, two's complement of the scheme's bits; the last block is padded with zeros.
        scales: fp32 ``[out, blocks]``.
        columns: values of a row, without the padding.
    """

    codes: np.ndarray
    scales: np.ndarray
    columns: int


def encode_integer(weight: np.ndarray, scheme: Scheme, origin: str) -> IntegerTensor:
    """Encode a weight ``[out, in, ...]``; trailing axes are flattened.

    Args:
        weight: float16, bfloat16, float32 or float64.
        scheme: an integer scheme.
        origin: where the weight comes from, for complaints.

    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    require_finite(weight, origin)
    rows = weight.reshape(weight.shape[0], -1)
    columns = rows.shape[1]
    block = scheme.block or columns
    blocks = -(-columns // block)
    codes = np.empty((rows.shape[0], blocks, block), np.int8)
    scales = np.empty((rows.shape[0], blocks), np.float32)
    step = max(1, CHUNK_ELEMENTS // (blocks * block))
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step].astype(np.float32)
        if blocks * block != columns:
            chunk = np.pad(chunk, ((0, 0), (0, blocks * block - columns)))
        made = _encode_blocks(chunk.reshape(-1, blocks, block), scheme.bits)
        codes[start : start + step], scales[start : start + step] = made
    return IntegerTensor(codes, scales, columns)


def decode_integer(encoded: IntegerTensor) -> np.ndarray:
    """The weight that the codes stand for: fp32 ``[out, in]``."""
    values: np.ndarray = encoded.codes.astype(np.float32) * encoded.scales[..., None]
    return values.reshape(len(values), -1)[:, : encoded.columns]


def _encode_blocks(weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 and scales fp32 of blocks ``[rows, blocks, block]``."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    largest = np.take_along_axis(weights, np.abs(weights).argmax(axis=-1)[..., None], axis=-1)  # signed
    best_gain = np.full(weights.shape[:-1], -1.0, np.float32)
    best_codes, best_scales = np.zeros(weights.shape, np.int8), np.ones(weights.shape[:-1], np.float32)
    for fraction in CANDIDATES[bits]:
        scale = largest * np.float32(fraction / low)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            codes = np.rint(weights / scale)
        codes = np.clip(np.nan_to_num(codes, copy=False, nan=0.0), low, high)  # a block of zeros has no scale
        against = np.einsum("rbi,rbi->rb", weights, codes)
        norm = np.einsum("rbi,rbi->rb", codes, codes)
        gain = np.divide(against**2, norm, out=np.zeros_like(norm), where=norm > 0)
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        best_scales = np.where(better, np.divide(against, norm, out=np.ones_like(norm), where=norm > 0), best_scales)
        best_codes = np.where(better[..., None], codes.astype(np.int8), best_codes)
    return best_codes, best_scales.astype(np.float32)
