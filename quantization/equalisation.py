"""Equalisation: inputs of a product whose ranges differ are divided by factors, and its weights multiplied by them.

``x W^T = (x / s) (W s)^T``, exactly. Where all inputs are rounded with one step, that step follows the widest of them; after the
division the narrow ones are rounded with more digits, and what the wide ones lose is in proportion to their size. The factors are
to be folded into what makes the inputs, so that they cost nothing there.

It pays where the inputs' rounding is most of the error: at 8-bit codes, for one step of a tensor and for those of blocks. Codes
of 4 bits lose by wider weights more than their inputs gain.

SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, equation 4) takes ``s_j = max|x_j|^a / max|w_j|^(1-a)``. Here ``s_j`` is the
root mean square of ``x_j`` to the power of a strength. That needs no more of a calibration than it holds, products that share
their inputs agree on the factors by themselves, and on the built-in student it is as good as SmoothQuant's
(``python -m benchmarks.studies.ablation``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantization.schemes import Scheme
from quantization.sensitivity import Sensitivity

STRENGTH = 0.5
UNSEEN = 1e-3  # share of the mean square that an input keeps which the calibration did not see: other prompts may use it


def pays(scheme: Scheme) -> bool:
    """Whether products of a scheme gain by it: those that round their inputs, to 8 bits as their codes.

    >>> from quantization.schemes import parse_scheme
    >>> [name for name in ("w8a8", "int8g128", "int4g32", "int8") if pays(parse_scheme(name))]
    ['w8a8', 'int8g128']
    """
    return scheme.bits == 8 and scheme.rounds_inputs


def input_factors(gram: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """What to divide each input by.

    Args:
        gram: of the product's inputs, ``[in, in]``.
        strength: 0 divides by 1; 1 makes all inputs alike and leaves their differences to the weights.

    Returns:
        Positive, with a geometric mean of 1, fp32 ``[in]``.

    >>> input_factors(np.diag([16.0, 1.0, 1.0])).round(1)
    array([1.6, 0.8, 0.8], dtype=float32)
    """
    squares = np.diagonal(gram).astype(np.float64)
    shares = squares / (squares.mean() or 1.0) + UNSEEN
    logs = strength / 2 * np.log(shares)
    factors: np.ndarray = np.exp(logs - logs.mean()).astype(np.float32)
    return factors


def equalised(sensitivity: Sensitivity, factors: np.ndarray) -> Sensitivity:
    """What is known of a weight ``[out, in]``, for the weight times the factors; rounding of inputs stays as it was measured."""
    assert sensitivity.gram is not None
    columns = sensitivity.columns / factors.astype(np.float64) ** 2
    rows = sensitivity.rows * (columns.sum() / (sensitivity.columns.sum() or 1.0))
    return replace(sensitivity, rows=rows, columns=columns, gram=sensitivity.gram / np.outer(factors, factors))
