"""Error feedback: what rounding one input's weights does to the product, the inputs that are still to be rounded make up for.

GPTQ (Frantar et al. 2022, arXiv 2210.17323, algorithm 1), after optimal brain surgery. For inputs ``x`` with Gram matrix
``G = sum x x^T``, the error of a product's output is ``tr(D G D^T)`` for a change ``D`` of the weight. Inputs are rounded in
order; with ``U`` the upper Cholesky factor of the inverse of ``G``, rounding input ``j`` by ``e`` is made up for best by moving
the weights of the inputs after it by ``-e U[j, k] / U[j, j]``. ``G`` is damped: inputs that the calibration hardly saw stay.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

DAMPING = 0.03  # of the mean of G's diagonal; GPTQ takes 0.01: few prompts leave more of the inputs unseen than its 128 samples


class Grid(Protocol):
    """The values that a scheme can store."""

    def fit(self, start: int, weights: np.ndarray) -> None:
        """Choose scales for the inputs from ``start``, whose weights ``[out, columns]`` are about to be rounded."""

    def nearest(self, column: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes and values ``[out]`` nearest to one input's weights."""


def encode_with_feedback(weights: np.ndarray, gram: np.ndarray, grid: Grid, block: int) -> np.ndarray:
    """Round a weight, input after input.

    Args:
        weights: fp32 ``[out, in]``; not changed.
        gram: ``[in, in]``, of the product's inputs.
        grid: what can be stored.
        block: inputs whose scales are chosen together.

    Returns:
        Codes, int16 ``[out, in]``.
    """
    left = weights.astype(np.float32, copy=True)
    columns = left.shape[1]
    factor = _inverse_factor(gram)
    codes = np.empty(left.shape, np.int16)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part = np.ascontiguousarray(left[:, start:stop])
        grid.fit(start, part)
        errors = np.empty_like(part)
        for j in range(stop - start):
            codes[:, start + j], values = grid.nearest(start + j, part[:, j])
            errors[:, j] = (part[:, j] - values) / factor[start + j, start + j]
            part[:, j:] -= errors[:, j, None] * factor[start + j, start + j : stop]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes


def _inverse_factor(gram: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the inverse of the damped Gram matrix, fp32 ``[in, in]``."""
    damped = gram.astype(np.float64)
    level = float(np.trace(damped)) / len(damped) or 1.0
    damped[np.diag_indices_from(damped)] += DAMPING * level
    inverse = np.linalg.inv(damped / level)  # its scale does not matter: only ratios of the factor's entries are used
    upper: np.ndarray = np.linalg.cholesky((inverse + inverse.T) / 2).T
    return np.ascontiguousarray(upper, dtype=np.float32)
