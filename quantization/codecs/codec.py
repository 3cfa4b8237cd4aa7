"""Encode and decode a weight, whatever the scheme; what is known of the weight's part in the picture is made use of.

================  ============================================================================================
integers          error feedback, where the product's inputs are known; else to nearest with searched scales
``lutB[gN]``      tables weighted by importance, then error feedback
================  ============================================================================================

Without a :class:`~quantization.sensitivity.Sensitivity` every scheme is data-free. Where a product's inputs are equalised
(:mod:`quantization.equalisation`), what is encoded is the weight times the factors.
"""

from __future__ import annotations

import numpy as np

from quantization.codecs.floating import encode_float
from quantization.codecs.integer import IntegerTensor, decode_integer, encode_integer, encode_integer_with_feedback
from quantization.codecs.lookup import LookupTensor, decode_lookup, encode_lookup
from quantization.equalisation import equalised
from quantization.schemes import Scheme
from quantization.sensitivity import Sensitivity


def encode_codes(
    weight: np.ndarray,
    scheme: Scheme,
    origin: str,
    sensitivity: Sensitivity | None = None,
    factors: np.ndarray | None = None,
) -> IntegerTensor | LookupTensor:
    """Encode a weight as integers or table indices.

    Args:
        weight: ``[out, in, ...]``; float16, bfloat16, float32 or float64.
        scheme: an integer or look-up scheme.
        origin: where the weight comes from, for complaints.
        sensitivity: the weight's; none for data-free encoding.
        factors: of its inputs, ``[in]``; none where they are not equalised.

    Raises:
        SchemeError: the weight holds NaN or infinity, or does not fit.
    """
    if factors is not None:
        weight, sensitivity = weight * factors, None if sensitivity is None else equalised(sensitivity, factors)
    gram = None if sensitivity is None else sensitivity.gram
    if scheme.kind == "lookup":
        if sensitivity is None:
            return encode_lookup(weight, scheme, origin)
        rows, columns = sensitivity.importance()
        return encode_lookup(weight, scheme, origin, rows[:, None] * columns, gram)
    if gram is not None:
        return encode_integer_with_feedback(weight, scheme, origin, gram)
    return encode_integer(weight, scheme, origin)


def roundtrip(
    weight: np.ndarray,
    scheme: Scheme,
    origin: str,
    sensitivity: Sensitivity | None = None,
    factors: np.ndarray | None = None,
) -> np.ndarray:
    """The weight that a scheme stores, fp32, in the weight's own shape; of ``w8a8`` only the weights are meant.

    Args:
        weight: as of :func:`encode_codes`.
        scheme: any scheme.
        origin: where the weight comes from, for complaints.
        sensitivity: the weight's; none for data-free encoding.
        factors: as of :func:`encode_codes`; the weight comes back without them.

    Raises:
        SchemeError: the weight holds NaN or infinity, or does not fit.
    """
    if scheme.kind == "float":
        return encode_float(weight, scheme.name, origin).astype(np.float32)
    encoded = encode_codes(weight, scheme, origin, sensitivity, factors)
    decoded = decode_lookup(encoded) if isinstance(encoded, LookupTensor) else decode_integer(encoded)
    return decoded.reshape(weight.shape) if factors is None else decoded / factors
