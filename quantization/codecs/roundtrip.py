"""What a weight is worth after it has been stored: encode, then decode, whatever the scheme."""

from __future__ import annotations

import numpy as np

from quantization.codecs.floating import encode_float
from quantization.codecs.integer import decode_integer, encode_integer
from quantization.codecs.lookup import decode_lookup, encode_lookup
from quantization.schemes import Scheme


def roundtrip(weight: np.ndarray, scheme: Scheme, origin: str, importance: np.ndarray | None = None) -> np.ndarray:
    """The weight that a scheme stores, fp32, in the weight's own shape.

    Args:
        weight: ``[out, in, ...]``.
        scheme: any scheme; of ``w8a8`` only the weights are meant.
        origin: where the weight comes from, for complaints.
        importance: of each input's squared error, positive ``[in]`` (trailing axes flattened).

    Raises:
        SchemeError: the weight holds NaN or infinity, or does not fit.
    """
    if scheme.kind == "float":
        return encode_float(weight, scheme.name, origin).astype(np.float32)
    if scheme.kind == "lookup":
        decoded = decode_lookup(encode_lookup(weight, scheme, origin, importance))
    else:
        decoded = decode_integer(encode_integer(weight, scheme, origin, importance))
    return decoded.reshape(weight.shape)
