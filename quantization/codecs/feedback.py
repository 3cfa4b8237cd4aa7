"""Error feedback: what rounding one input's weights does to the product, the inputs that are still to be rounded make up for.

GPTQ (Frantar et al. 2022, arXiv 2210.17323, algorithm 1), after optimal brain surgery. For inputs ``x`` with Gram matrix
``G = sum x x^T``, the error of a product's output is ``tr(D G D^T)`` for a change ``D`` of the weight. Inputs are rounded one
after another, those of the largest mean square first: the first have all others to make up for them. In that order, with ``U``
the upper Cholesky factor of the inverse of ``G``, rounding input ``j`` by ``e`` is made up for best by moving the weights of the
inputs after it by ``-e U[j, k] / U[j, j]``. ``G`` is damped: inputs that the calibration hardly saw stay.

What can be stored is fixed before: scales and tables belong to inputs as they lie, not as they are rounded. (Scales chosen when a
block's turn comes, which needs the inputs' own order, leave 1 dB more of an error on the built-in student.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DAMPING = 0.03  # of the mean of G's diagonal; GPTQ takes 0.01: few prompts leave more of the inputs unseen than its 128 samples


UPDATE_COLUMNS = 128  # inputs between two updates of all that follow

Nearest = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Codes and values ``[out]`` nearest to one input's weights, of those that can be stored."""


def encode_with_feedback(weights: np.ndarray, gram: np.ndarray, nearest: Nearest) -> np.ndarray:
    """Round a weight, input after input.

    Args:
        weights: fp32 ``[out, in]``; not changed.
        gram: ``[in, in]``, of the product's inputs.
        nearest: rounds the weights ``[out]`` of the input of an index.

    Returns:
        Codes, int16 ``[out, in]``.
    """
    order = np.argsort(-np.diag(gram), kind="stable")
    left = weights[:, order].astype(np.float32)
    columns = left.shape[1]
    factor = _inverse_factor(gram[np.ix_(order, order)])
    codes = np.empty(left.shape, np.int16)
    for start in range(0, columns, UPDATE_COLUMNS):
        stop = min(start + UPDATE_COLUMNS, columns)
        part = np.ascontiguousarray(left[:, start:stop])
        errors = np.empty_like(part)
        for j in range(stop - start):
            column = order[start + j]
            codes[:, column], values = nearest(int(column), part[:, j])
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
