from __future__ import annotations

import numpy as np
import pytest

from exporters.onnx.transpose import TILE_COLUMNS, TILE_WORDS, WORD_BYTES, transposed

RNG = np.random.default_rng(0)
TILE_ROWS = TILE_WORDS * WORD_BYTES  # of bytes


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32])
@pytest.mark.parametrize("rows", [0, 8, TILE_ROWS, TILE_ROWS + 24, 7, TILE_ROWS + 1])
@pytest.mark.parametrize("columns", [1, TILE_COLUMNS, 2 * TILE_COLUMNS + 3])
def test_is_the_transpose(rows: int, columns: int, dtype: type) -> None:
    matrix = RNG.integers(-99, 99, (rows, columns)).astype(dtype)
    result = transposed(matrix)
    assert result.dtype == matrix.dtype
    assert result.flags.c_contiguous
    assert np.array_equal(result, matrix.T)


def test_takes_parts_of_matrices() -> None:
    matrix = RNG.integers(-99, 99, (48, 60), np.int8)
    assert np.array_equal(transposed(matrix[::2, 3:50]), matrix[::2, 3:50].T)
    assert np.array_equal(transposed(matrix.T[:40]), matrix[:, :40])
