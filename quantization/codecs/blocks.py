"""Integer codes of blocks, with the scale that fits them best.

For codes ``q`` of a block ``w``, the best scale is the least-squares fit ``<w, q> / <q, q>``, with error
``|w|^2 - <w, q>^2 / <q, q>``. Each candidate scale rounds the block to its codes; the candidate whose codes fit best wins, with
its refitted scale. Candidates shrink the range from the block's largest value, which is laid on the longer, negative end of the
two's-complement range (-8 of -8..7), sign included: with few bits that end is worth a twelfth of the range. With zero points the
candidates shrink the block's whole range, zero included, and ``q`` above is ``code - zero``. Where inputs differ in importance,
every product above is weighted by it.

A scale has 16 significant bits: its products with codes are then exact in fp32, so that what is stored is stored again bit for
bit (but for blocks with zero points whose bounds lie halfway between two codes).

numba compiles the search: it reads a block once from memory for all candidates, where numpy would pass over it some ten times for
each. The lock on the interpreter is released meanwhile.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from quantization.schemes import Scheme

# Fractions of the range that candidates keep. For a normal block of 32 the optimum of 4 bits lies near 0.9, of 2 bits near 0.7;
# at 8 bits clipping hardly ever pays.
CANDIDATES = {8: (1.0, 0.97), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75), 2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45)}

# Others lay the largest value on 127 (GGUF's Q8_0, bitsandbytes): what they have rounded is found again to the last bit.
SYMMETRIC = {8: (128 / 127,), 4: (), 2: ()}

SCALE_BITS = 16  # and at most 8 of a code: 24 are what fp32 has


def candidates(scheme: Scheme) -> tuple[float, ...]:
    """The fractions of a block's range that a scheme tries."""
    return (*CANDIDATES[scheme.bits], *(() if scheme.zero_points else SYMMETRIC[scheme.bits]))


def encode_blocks(
    weights: np.ndarray, scheme: Scheme, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode blocks.

    Args:
        weights: finite, fp32 ``[rows, blocks, block]``.
        scheme: an integer scheme.
        importance: of each input's squared error, fp32 ``[blocks, block]``; none where all count alike.

    Returns:
        Codes int8 ``[rows, blocks, block]``, scales fp32 and zeros int8 ``[rows, blocks]``.
    """
    rows, blocks, block = weights.shape
    codes = np.empty(weights.shape, np.int8)
    scales, zeros = np.empty((rows, blocks), np.float32), np.zeros((rows, blocks), np.int8)
    shares = np.ones((blocks, block), np.float32) if importance is None else importance
    fractions = np.array(candidates(scheme), np.float32)
    _fit(weights, shares, fractions, scheme.bits, scheme.zero_points, codes, scales, zeros)
    return codes, _short(scales), zeros


def _short(scales: np.ndarray) -> np.ndarray:
    """Scales rounded to :data:`SCALE_BITS` significant bits; those below fp32's normal numbers stay as they are."""
    spare = 24 - SCALE_BITS
    rounded = ((scales.view(np.int32) + (1 << (spare - 1))) & -(1 << spare)).view(np.float32)
    return np.where(np.isfinite(rounded) & (np.abs(scales) >= np.finfo(np.float32).tiny), rounded, scales)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _range(block: np.ndarray) -> tuple[np.float32, np.float32]:  # pragma: no cover (compiled)
    """The least and the largest value, zero included.

    By bits: the compiler has no vectors for the extremes of floats. As signed integers all positive floats are in order; as
    unsigned ones the largest is the least of the negative floats.
    """
    bits, least, largest = block.view(np.int32), np.uint32(1 << 31), np.int32(0)
    for i in range(bits.size):
        least, largest = max(least, np.uint32(bits[i])), max(largest, bits[i])
    return np.uint32(least).view(np.float32), np.int32(largest).view(np.float32)


# Sums may be taken in any order: that is what lets them run in vectors.
@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})  # type: ignore[untyped-decorator]
def _fit(
    weights: np.ndarray,
    shares: np.ndarray,
    fractions: np.ndarray,
    bits: int,
    zero_points: bool,
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Fill in codes, scales and zeros."""
    low = np.float32(-(1 << (bits - 1)))
    high, nothing = -low - np.float32(1), np.float32(0)
    for r in range(weights.shape[0]):
        for b in range(weights.shape[1]):
            block, share = weights[r, b], shares[b]
            bottom, top = _range(block)
            largest = top if top > -bottom else bottom
            best, best_inverse, best_scale, best_zero = np.float32(-1), nothing, np.float32(1), nothing
            for fraction in fractions:
                scale = (top - bottom) * (fraction / (high - low)) if zero_points else largest * (fraction / low)
                inverse = np.float32(1) / scale
                if not np.isfinite(inverse):  # a block of zeros, or of what fp32 hardly tells from them
                    inverse = nothing
                zero = min(max(np.rint(low - bottom * fraction * inverse), low), high) if zero_points else nothing
                against, norm = nothing, nothing
                for i in range(block.size):
                    code = min(max(np.rint(block[i] * inverse) + zero, low), high) - zero
                    against += block[i] * code * share[i]
                    norm += code * code * share[i]
                gain = against * against / norm if norm > 0 else nothing
                if gain > best:
                    best, best_inverse, best_zero = gain, inverse, zero
                    best_scale = against / norm if norm > 0 else np.float32(1)
            scales[r, b], zeros[r, b] = best_scale, np.int8(best_zero)
            for i in range(block.size):
                codes[r, b, i] = np.int8(min(max(np.rint(block[i] * best_inverse) + best_zero, low), high))
