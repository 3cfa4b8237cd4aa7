"""Integers with scales, per output channel or per block along the input axis; with zero points where the scheme has them.

Scales are searched, not taken from the largest value (:mod:`quantization.codecs.blocks`).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from quantization.codecs.blocks import encode_blocks
from quantization.codecs.feedback import encode_with_feedback
from quantization.codecs.floating import require_finite, to_fp32
from quantization.schemes import Scheme

CHUNK_ELEMENTS = 1 << 18  # a core's share of the work at a time: in fp32 it stays in the cache


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

    def encode(start: int) -> None:
        part = slice(start, start + step)
        chunk = np.ascontiguousarray(to_fp32(rows[part]))
        if padding:
            chunk = np.pad(chunk, ((0, 0), (0, padding)))
        codes[part], scales[part], offsets = encode_blocks(chunk.reshape(-1, blocks, block), scheme, shares)
        if zeros is not None:
            zeros[part] = offsets

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(encode, range(0, rows.shape[0], step)))
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
    plain = encode_integer(weight, scheme, origin)
    block, low, high = plain.codes.shape[2], -(1 << (scheme.bits - 1)), (1 << (scheme.bits - 1)) - 1
    zeros = np.zeros_like(plain.scales) if plain.zeros is None else plain.zeros.astype(np.float32)

    def nearest(column: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale, zero = plain.scales[:, column // block], zeros[:, column // block]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            codes = np.clip(np.nan_to_num(np.rint(weights / scale)) + zero, low, high)
        return codes, (codes - zero) * scale

    codes = plain.codes.copy()  # the padding stands for zero already
    rows = weight.reshape(weight.shape[0], -1).astype(np.float32)
    codes.reshape(len(rows), -1)[:, : rows.shape[1]] = encode_with_feedback(rows, gram, nearest)
    return replace(plain, codes=codes)


def decode_integer(encoded: IntegerTensor) -> np.ndarray:
    """The weight that the codes stand for: fp32 ``[out, in]``."""
    codes = encoded.codes.astype(np.float32)
    if encoded.zeros is not None:
        codes -= encoded.zeros[..., None]
    values: np.ndarray = codes * encoded.scales[..., None]
    return values.reshape(len(values), -1)[:, : encoded.columns]
