"""How much a weight's error, and its inputs' rounding, shows in the picture.

Let ``p`` be the picture, ``M = d(v . p) / dW`` the gradient of one of its random projections. A small change ``D`` of the weight
moves the picture by ``J D``, and for ``v`` with mean square ``1 / n`` over the picture's ``n`` values::

    mean square change = E_v[(sum_ij M_ij D_ij)^2]  =  sum_ij E_v[M_ij^2] D_ij^2      for errors that are independent

Rounding errors of different weights nearly are. ``E[M_ij^2]`` (the diagonal of a Fisher matrix of the picture) is kept as the
product of its row and column sums: two vectors for a matrix. Rounding an input ``x`` to steps of ``s`` adds ``s^2 / 12`` to each
value, weighted by the squared gradient of the input.

Where the Gram matrix ``G`` of the product's inputs is known, ``E[M_ij M_ik]`` is taken as ``rows_i G_jk / tr(G)``
(Martens & Grosse 2015, arXiv 1503.05671: gradients of outputs and inputs as independent), which also sees that errors of a row
make up for each other.

Everything is in units of squared picture values in [0, 1], so that ``-10 log10`` of a sum is a PSNR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantization.schemes import Scheme

CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Sensitivity:
    """What an error of one weight ``[out, in]`` does to the picture.

    Attributes:
        rows: sums of ``E[M^2]`` over inputs, ``[out]``.
        columns: sums over outputs, ``[in]``.
        rounding: mean square change of the picture from rounding the product's inputs to 8 bits: by block size along the input
            axis, 0 for the whole tensor.
        gram: of the product's inputs, ``[in, in]``; none for convolutions and embeddings.
    """

    rows: np.ndarray
    columns: np.ndarray
    rounding: Mapping[int, float]
    gram: np.ndarray | None = None

    def weight_error(self, weight: np.ndarray, stored: np.ndarray) -> float:
        """Expected mean square change of the picture when ``stored`` stands for ``weight``; trailing axes are flattened."""
        if self.gram is not None:
            total, middle = float(np.trace(self.gram)), np.asarray(self.gram, np.float32)
        else:
            total, middle = float(self.rows.sum()), self.columns.astype(np.float32)
        if total == 0:
            return 0.0
        rows = max(1, CHUNK_ELEMENTS // max(1, weight[0].size))
        error = 0.0
        for start in range(0, len(weight), rows):
            part = slice(start, start + rows)
            moved = weight[part].astype(np.float32) - stored[part]
            moved = moved.reshape(len(moved), -1)
            weighted = moved * middle if middle.ndim == 1 else moved @ middle
            error += float(self.rows[part] @ np.einsum("ij,ij->i", moved, weighted, dtype=np.float64))
        return error / total

    def rounding_error(self, scheme: Scheme) -> float:
        """Expected mean square change from how products of that scheme round their inputs; 0 where they do not."""
        if scheme.dynamic_activations:
            return self.rounding[0]
        if scheme.kind == "integer" and scheme.block is not None:
            return self.rounding[scheme.block]
        return 0.0

    def importance(self) -> tuple[np.ndarray, np.ndarray]:
        """How much each output ``[out]`` and each input ``[in]`` matters, 1 on average: their product weighs a squared error.

        What the calibration's prompts did not use keeps a thousandth: other prompts may.
        """
        rows, columns = (sums / (sums.mean() or 1.0) + 1e-3 for sums in (self.rows, self.columns))
        return rows / rows.mean(), columns / columns.mean()
