"""Integers with scales, per output channel or per block along the input axis; with zero points where the scheme has them.

Scales are searched, not taken from the largest value. For codes ``q`` of a block ``w``, the best scale is the least-squares
fit ``<w, q> / <q, q>``, with error ``|w|^2 - <w, q>^2 / <q, q>``. Each candidate scale rounds the block to its codes; the
candidate whose codes fit best wins, with its refitted scale. Candidates shrink the range from the block's largest value,
which is laid on the longer, negative end of the two's-complement range (-8 of -8..7), sign included: with few bits that
end is worth a twelfth of the range. With zero points the candidates shrink the block's whole range, zero included, and
``q`` above is ``code - zero``. Where inputs differ in importance, every product above is weighted by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quantization.codecs.feedback import encode_with_feedback
from quantization.codecs.floating import require_finite
from quantization.schemes import Scheme

# Fractions of the range that candidates keep. For a normal block of 32 the optimum of 4 bits lies near 0.9, of 2 bits near 0.7;
# at 8 bits clipping hardly ever pays.
CANDIDATES = {8: (1.0, 0.97), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75), 2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45)}
CHUNK_ELEMENTS = 1 << 21
FEEDBACK_COLUMNS = 128  # of whole rows: inputs between two updates of all that follow


@dataclass(frozen=True)
class IntegerTensor:
    """An encoded weight.

    Attributes:
        codes: int8 ``[out, blocks, block]``, two's complement of the scheme's bits; the last block is padded with zeros.
        scales: fp32 ``[out, blocks]``.
        columns: values of a row, without the padding.
        zeros: int8 ``[out, blocks]``, the code that stands for zero; none in symmetric schemes.
    """

    codes: np.ndarray
    scales: np.ndarray
    columns: int
    zeros: np.ndarray | None = None


def encode_integer(weight: np.ndarray, scheme: Scheme, origin: str, importance: np.ndarray | None = None) -> IntegerTensor:
    """Encode a weight ``[out, in, ...]``; trailing axes are flattened.

    Args:
        weight: float16, bfloat16, float32 or float64.
        scheme: an integer scheme.
        origin: where the weight comes from, for complaints.
        importance: of each input's squared error, positive ``[in]``; none where all count alike.

    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    require_finite(weight, origin)
    rows = weight.reshape(weight.shape[0], -1)
    columns = rows.shape[1]
    block = scheme.block or columns
    blocks = -(-columns // block)
    padding = blocks * block - columns
    codes = np.empty((rows.shape[0], blocks, block), np.int8)
    scales = np.empty((rows.shape[0], blocks), np.float32)
    zeros = np.zeros((rows.shape[0], blocks), np.int8) if scheme.zero_points else None
    shares = None
    if importance is not None:
        shares = np.pad(importance / importance.mean(), (0, padding)).astype(np.float32).reshape(blocks, block)
    step = max(1, CHUNK_ELEMENTS // (blocks * block))
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step].astype(np.float32)
        if padding:
            chunk = np.pad(chunk, ((0, 0), (0, padding)))
        part = slice(start, start + step)
        codes[part], scales[part], offsets = encode_blocks(chunk.reshape(-1, blocks, block), scheme, shares)
        if zeros is not None:
            zeros[part] = offsets
    return IntegerTensor(codes, scales, columns, zeros)


def encode_integer_with_feedback(weight: np.ndarray, scheme: Scheme, origin: str, gram: np.ndarray) -> IntegerTensor:
    """Encode a weight so that its product's output changes least (:mod:`quantization.codecs.feedback`).

    Args:
        weight: as of :func:`encode_integer`.
        scheme: an integer scheme.
        origin: where the weight comes from, for complaints.
        gram: of the product's inputs, ``[in, in]``.

    Raises:
        SchemeError: the weight holds NaN or infinity.
    """
    require_finite(weight, origin)
    rows = weight.reshape(weight.shape[0], -1).astype(np.float32)
    columns = rows.shape[1]
    block = scheme.block or columns
    grid = _IntegerGrid(scheme, rows, block)
    step = FEEDBACK_COLUMNS if scheme.block is None else block
    codes = np.pad(encode_with_feedback(rows, gram, grid, step), ((0, 0), (0, -columns % block)))
    if scheme.zero_points:  # padding stands for zero
        codes[:, columns:] = grid.zeros[:, -1:]
    zeros = grid.zeros if scheme.zero_points else None
    return IntegerTensor(codes.reshape(len(rows), -1, block).astype(np.int8), grid.scales, columns, zeros)


class _IntegerGrid:
    """Scales of each block, chosen when its turn comes; of whole rows, at once."""

    def __init__(self, scheme: Scheme, rows: np.ndarray, block: int) -> None:
        self.scheme, self.block = scheme, block
        blocks = -(-rows.shape[1] // block)
        self.scales, self.zeros = np.ones((len(rows), blocks), np.float32), np.zeros((len(rows), blocks), np.int8)
        self.low, self.high = -(1 << (scheme.bits - 1)), (1 << (scheme.bits - 1)) - 1
        if scheme.block is None:
            self._fit(0, rows)

    def fit(self, start: int, weights: np.ndarray) -> None:
        if self.scheme.block is not None:
            self._fit(start // self.block, np.pad(weights, ((0, 0), (0, self.block - weights.shape[1]))))

    def _fit(self, index: int, weights: np.ndarray) -> None:
        _, scales, zeros = encode_blocks(weights[:, None], self.scheme)
        self.scales[:, index], self.zeros[:, index] = scales[:, 0], zeros[:, 0]

    def nearest(self, column: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale, zero = self.scales[:, column // self.block], self.zeros[:, column // self.block].astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            codes = np.clip(np.nan_to_num(np.rint(weights / scale)) + zero, self.low, self.high)
        return codes, (codes - zero) * scale


def decode_integer(encoded: IntegerTensor) -> np.ndarray:
    """The weight that the codes stand for: fp32 ``[out, in]``."""
    codes = encoded.codes.astype(np.float32)
    if encoded.zeros is not None:
        codes -= encoded.zeros[..., None]
    values: np.ndarray = codes * encoded.scales[..., None]
    return values.reshape(len(values), -1)[:, : encoded.columns]


def encode_blocks(
    weights: np.ndarray, scheme: Scheme, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes int8, scales fp32 and zeros int8 of blocks fp32 ``[rows, blocks, block]``; importance ``[blocks, block]``."""
    low, high = -(1 << (scheme.bits - 1)), (1 << (scheme.bits - 1)) - 1
    best_gain = np.full(weights.shape[:-1], -1.0, np.float32)
    best_codes, best_scales = np.zeros(weights.shape, np.int8), np.ones(weights.shape[:-1], np.float32)
    best_zeros = np.zeros(weights.shape[:-1], np.int8)
    for scale, zero in _candidates(weights, scheme, low, high):
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            codes = np.rint(weights / scale)
        codes = np.clip(np.nan_to_num(codes, copy=False, nan=0.0) + zero, low, high)  # a block of zeros has no scale
        centred = codes - zero
        weighted = centred if importance is None else centred * importance
        against = np.einsum("rbi,rbi->rb", weights, weighted)
        norm = np.einsum("rbi,rbi->rb", centred, weighted)
        gain = np.divide(against**2, norm, out=np.zeros_like(norm), where=norm > 0)
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        best_scales = np.where(better, np.divide(against, norm, out=np.ones_like(norm), where=norm > 0), best_scales)
        best_codes = np.where(better[..., None], codes.astype(np.int8), best_codes)
        best_zeros = np.where(better, np.broadcast_to(zero, (*weights.shape[:-1], 1))[..., 0].astype(np.int8), best_zeros)
    return best_codes, best_scales.astype(np.float32), best_zeros


def _candidates(weights: np.ndarray, scheme: Scheme, low: int, high: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scales and zero points to try, ``[rows, blocks, 1]`` each."""
    if scheme.zero_points:
        bottom = np.minimum(weights.min(axis=-1, keepdims=True), 0)
        top = np.maximum(weights.max(axis=-1, keepdims=True), 0)
        for fraction in CANDIDATES[scheme.bits]:
            scale = (top - bottom) * np.float32(fraction / (high - low))
            with np.errstate(divide="ignore", invalid="ignore"):
                zero = np.rint(low - bottom * np.float32(fraction) / scale)
            yield scale, np.clip(np.nan_to_num(zero, copy=False, nan=0.0), low, high)
        return
    largest = np.take_along_axis(weights, np.abs(weights).argmax(axis=-1)[..., None], axis=-1)  # signed
    nothing = np.zeros((1, 1, 1), np.float32)
    for fraction in CANDIDATES[scheme.bits]:
        yield largest * np.float32(fraction / low), nothing
