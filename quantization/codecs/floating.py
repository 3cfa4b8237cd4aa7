"""``fp32`` and ``fp16``: round to nearest, and refuse what cannot be stored."""

from __future__ import annotations

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy: checkpoints hold it)
import numpy as np
from numba import njit

from quantization.errors import Complaint, SchemeError

DTYPES: dict[str, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}


def encode_float(tensor: np.ndarray, scheme: str, origin: str) -> np.ndarray:
    """Round ``tensor`` to the stored type (ties to even); no copy when it has that type already.

    Args:
        tensor: any shape; float16, bfloat16, float32 or float64.
        scheme: ``fp32`` or ``fp16``.
        origin: where the tensor comes from, for the complaint.

    Raises:
        SchemeError: a value is NaN or infinite, or is too large for the stored type.
    """
    dtype = DTYPES[scheme]
    with np.errstate(over="ignore", invalid="ignore"):  # looked for below, and named
        encoded = to_fp32(tensor) if dtype is np.float32 else tensor.astype(dtype, copy=False)
    if not all_finite(encoded):
        raise SchemeError(f"A weight cannot be stored as {scheme}.", [_why_not_finite(tensor, scheme, origin)])
    return encoded


def to_fp32(tensor: np.ndarray) -> np.ndarray:
    """``tensor.astype(np.float32, copy=False)``, but that fp16 is widened in vectors: numpy does so number after number."""
    if tensor.dtype != np.float16:
        return tensor.astype(np.float32, copy=False)
    wide = np.empty(tensor.shape, np.float32)
    _widen(np.ascontiguousarray(tensor).view(np.uint16).reshape(-1), wide.reshape(-1))
    return wide


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _widen(half: np.ndarray, wide: np.ndarray) -> None:  # pragma: no cover (compiled)
    """Lay the bits of fp16 where fp32 has them; the exponents' biases, 15 and 127, differ by a factor of 2^112."""
    for i in range(half.size):
        sign, magnitude = np.uint32(half[i] & 0x8000) << np.uint32(16), np.uint32(half[i] & 0x7FFF) << np.uint32(13)
        if magnitude >= 0x7C00 << 13:  # infinity and NaN
            magnitude |= np.uint32(0x7F800000)
        wide[i] = np.uint32(sign | magnitude).view(np.float32) * np.float32(2.0**112)


def require_finite(tensor: np.ndarray, origin: str) -> None:
    """Refuse NaN and infinity, by name.

    Raises:
        SchemeError: there are such values.
    """
    if not all_finite(tensor):
        raise SchemeError("A weight cannot be stored.", [_why_not_finite(tensor, "fp32", origin)])


def all_finite(tensor: np.ndarray, chunk_elements: int = 1 << 20) -> bool:
    """``np.isfinite(tensor).all()``, in chunks that stay in the cache.

    By bits, since numpy has no vectors for tests of half-precision numbers: NaN and infinity are those whose bits, without the
    sign, are not below infinity's.
    """
    flat = tensor.reshape(-1) if tensor.flags.c_contiguous else tensor.ravel(order="K")
    words = np.dtype(f"u{flat.itemsize}").type
    infinity = np.array(np.inf, flat.dtype).view(words)
    magnitude = words(np.iinfo(words).max >> 1)
    chunks = (flat[i : i + chunk_elements].view(words) for i in range(0, flat.size, chunk_elements))
    return all((chunk & magnitude).max() < infinity for chunk in chunks)


def _why_not_finite(tensor: np.ndarray, scheme: str, origin: str) -> Complaint:
    wide = tensor.astype(np.float32)
    bad = ~np.isfinite(wide)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        what = f"{int(bad.sum())} values are NaN or infinite, the first at {list(first)}"
        return Complaint(origin, what, "finite weights")
    limit = float(np.finfo(DTYPES[scheme]).max)
    return Complaint(origin, f"too large for {scheme}; use --precision fp32", f"|w| <= {limit:g}", f"{np.abs(wide).max():g}")
