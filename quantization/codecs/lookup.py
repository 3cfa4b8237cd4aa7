"""Look-up tables: each weight is an index into a small table of values, one table for a tensor or for a group of channels.

The tables are optimal (:mod:`quantization.codecs.kmeans`), on the histogram of the weights as fp16: a checkpoint's own
precision as a rule, and 2**-11 of a weight where it is finer, far below the distance between two entries. Tables are fp16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantization.codecs.feedback import Nearest, encode_with_feedback
from quantization.codecs.floating import encode_float, to_fp32
from quantization.codecs.kmeans import kmeans
from quantization.schemes import Scheme

BINS, MINUS_ZERO = 1 << 16, 1 << 15  # of fp16, by bit pattern
CHUNK_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class LookupTensor:
    """An encoded weight.

    Attributes:
        codes: uint8 ``[out, in]``, indices into the table of the row's group.
        tables: fp16 ``[groups, 2**bits]``, rising; where there are fewer distinct weights, the last is repeated.
        group: rows that share a table.
    """

    codes: np.ndarray
    tables: np.ndarray
    group: int


def encode_lookup(
    weight: np.ndarray, scheme: Scheme, origin: str, importance: np.ndarray | None = None, gram: np.ndarray | None = None
) -> LookupTensor:
    """Encode a weight ``[out, in, ...]``; trailing axes are flattened.

    Args:
        weight: float16, bfloat16, float32 or float64.
        scheme: a look-up scheme.
        origin: where the weight comes from, for complaints.
        importance: of each weight's squared error, positive, broadcastable to ``[out, in]``; none where all count alike.
        gram: of the product's inputs, ``[in, in]``: weights are then rounded to the tables with error feedback
            (:mod:`quantization.codecs.feedback`).

    Raises:
        SchemeError: the weight holds NaN or infinity, or does not fit fp16.
    """
    rows = encode_float(weight.reshape(weight.shape[0], -1), "fp16", origin)
    bits = np.where(rows.view(np.uint16) == MINUS_ZERO, np.uint16(0), rows.view(np.uint16))  # one zero, not two
    group = scheme.block or len(rows)
    entries = 1 << scheme.bits
    codes = np.empty(rows.shape, np.uint8)
    tables = np.empty((-(-len(rows) // group), entries), np.float16)
    for index, start in enumerate(range(0, len(rows), group)):
        part = slice(start, start + group)
        shares = None if importance is None else np.broadcast_to(importance, rows.shape)[part]
        tables[index], code_of = _table(_histogram(bits[part], shares), entries)
        codes[part] = code_of[bits[part]]
    if gram is not None:
        codes = encode_with_feedback(to_fp32(rows), gram, _nearest_entries(tables, len(rows), group)).astype(np.uint8)
    return LookupTensor(codes, tables, group)


def _nearest_entries(tables: np.ndarray, rows: int, group: int) -> Nearest:
    entries = tables.astype(np.float32)
    halfway = (entries[:, 1:] + entries[:, :-1]) / 2
    groups = [slice(start, start + group) for start in range(0, rows, group)]

    def nearest(column: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = np.concatenate([np.searchsorted(edges, weights[part]) for edges, part in zip(halfway, groups, strict=True)])
        return codes, entries[np.arange(rows) // group, codes]

    return nearest


def decode_lookup(encoded: LookupTensor) -> np.ndarray:
    """The weight that the codes stand for: fp32 ``[out, in]``."""
    group = np.arange(len(encoded.codes)) // encoded.group
    values: np.ndarray = encoded.tables.astype(np.float32)[group[:, None], encoded.codes]
    return values


def _histogram(bits: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """How often (or with how much importance) each fp16 value occurs: float64 ``[65536]``, by bit pattern."""
    counts = np.zeros(BINS)
    step = max(1, CHUNK_ELEMENTS // bits.shape[1])
    for start in range(0, len(bits), step):
        chunk = bits[start : start + step].reshape(-1)
        shares = None if importance is None else importance[start : start + step].reshape(-1)
        counts += np.bincount(chunk, shares, BINS)
    return counts


def _table(counts: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """The table of a histogram, and the code of every bit pattern in it."""
    present = np.flatnonzero(counts).astype(np.uint16)
    values = present.view(np.float16)
    order = np.argsort(values)
    centres, labels = kmeans(values[order].astype(np.float64), counts[present[order]], entries)
    code_of = np.zeros(BINS, np.uint8)
    code_of[present[order]] = labels
    return np.pad(centres, (0, entries - len(centres)), mode="edge").astype(np.float16), code_of
