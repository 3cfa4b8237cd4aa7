"""The grammar of schemes: how one weight tensor is stored.

A scheme's name decodes itself. ``fp32`` and ``fp16`` store the value in that floating-point type.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy: checkpoints hold it)
import numpy as np

from quantization.errors import Complaint, SchemeError


@dataclass(frozen=True)
class FloatScheme:
    """A weight stored as IEEE floating point.

    Attributes:
        name: the scheme's name, ``fp32`` or ``fp16``.
        dtype: the numpy type that is stored.
    """

    name: str
    dtype: np.dtype[np.floating]

    def size_bytes(self, elements: int) -> int:
        """Exact stored size of a tensor.

        >>> SCHEMES["fp16"].size_bytes(10)
        20
        """
        return elements * self.dtype.itemsize

    def encode(self, tensor: np.ndarray, origin: str) -> np.ndarray:
        """Round ``tensor`` to the stored type (ties to even); no copy when it has that type already.

        Args:
            tensor: any shape; float16, bfloat16, float32 or float64.
            origin: where the tensor comes from, for the complaint.

        Raises:
            SchemeError: a value is NaN or infinite, or is too large for the stored type.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below, and named
            encoded = tensor.astype(self.dtype, copy=False)
        if not _all_finite(encoded):
            raise SchemeError(f"A weight cannot be stored as {self.name}.", [_why_not_finite(tensor, self, origin)])
        return encoded


SCHEMES = {
    "fp32": FloatScheme("fp32", np.dtype(np.float32)),
    "fp16": FloatScheme("fp16", np.dtype(np.float16)),
}


def _all_finite(tensor: np.ndarray, chunk_elements: int = 1 << 22) -> bool:
    """``np.isfinite(tensor).all()`` in chunks, so that the temporary stays at a few megabytes."""
    flat = tensor.reshape(-1) if tensor.flags.c_contiguous else tensor.ravel(order="K")
    return all(np.isfinite(flat[i : i + chunk_elements]).all() for i in range(0, flat.size, chunk_elements))


def _why_not_finite(tensor: np.ndarray, scheme: FloatScheme, origin: str) -> Complaint:
    wide = tensor.astype(np.float32)
    bad = ~np.isfinite(wide)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        return Complaint(origin, f"{int(bad.sum())} values are NaN or infinite, the first at {list(first)}", "finite weights")
    limit = float(np.finfo(scheme.dtype).max)
    return Complaint(origin, f"too large for {scheme.name}; use --precision fp32", f"|w| <= {limit:g}", f"{np.abs(wide).max():g}")
