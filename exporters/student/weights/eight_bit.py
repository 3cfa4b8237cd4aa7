"""Weights that are stored in eight bits, as numbers: what is read of them is what whoever stored them computes with.

fp8 alone (``float8_e4m3fn``, ``float8_e5m2``) is exact in fp16. ComfyUI's scaled fp8 multiplies a weight by the scale beside it
(``X.scale_weight``, ``X.weight_scale``; a number, or one for each output channel); bitsandbytes' LLM.int8 has rows of codes from
-127 to 127 and their largest value (``X.SCB``). Scales of inputs are of a runtime that rounds them, and are not used.
"""

from __future__ import annotations

from collections.abc import Collection

import ml_dtypes
import numpy as np

FP8 = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
INT8 = "I8"
_SCALES = (".scale_weight", ".weight_scale")
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant", ".weight_format")
_MARKS = ("scaled_fp8",)
_LARGEST = ".SCB"
_NAMES = {"F8_E4M3": "fp8 (e4m3)", "F8_E5M2": "fp8 (e5m2)", INT8: "int8 (bitsandbytes)"}
INT8_RANGE = 127


def is_beside(name: str, names: Collection[str]) -> bool:
    """Whether a tensor only says how another is stored.

    >>> names = ["a.weight", "a.scale_weight", "a.SCB", "scaled_fp8"]
    >>> [is_beside(name, names) for name in names]
    [False, True, True, True]
    """
    if name.rpartition(".")[2] in _MARKS:
        return True
    for suffix in (*_SCALES, *_UNUSED, _LARGEST):
        if name.endswith(suffix):
            return f"{name.removesuffix(suffix)}.weight" in names
    return False


def scale_of(name: str, names: Collection[str]) -> str:
    """The tensor that scales a weight; empty for none."""
    if not name.endswith(".weight"):
        return ""
    layer = name.removesuffix(".weight")
    return next((f"{layer}{suffix}" for suffix in (*_SCALES, _LARGEST) if f"{layer}{suffix}" in names), "")


def scaled(codes: np.ndarray, scale: np.ndarray, name: str) -> np.ndarray:
    """A weight of its codes and their scale, fp32.

    Args:
        codes: as they are stored.
        scale: a number, or one for each row.
        name: of the scale's tensor.
    """
    factors = np.asarray(scale, np.float32).reshape(-1)
    if name.endswith(_LARGEST):
        factors = factors / np.float32(INT8_RANGE)
    product: np.ndarray = codes.astype(np.float32) * factors.reshape(-1, *[1] * (codes.ndim - 1))
    return product


def how_stored(kinds: Collection[str], is_scaled: bool) -> str:
    """What to say of weights that are codes; empty where there are none.

    Args:
        kinds: types as safetensors calls them, or words.
        is_scaled: whether there are scales beside them.
    """
    if not kinds:
        return ""
    names = " and ".join(_NAMES.get(kind, kind) for kind in sorted(kinds))
    return f"stored as {names}{', scaled' if is_scaled else ''}: the student is what is left of it"
