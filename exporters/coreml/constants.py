"""Constants of a Core ML program: placeholders while it is built, read and encoded one at a time when it is written.

::

    float             const; constexpr_cast(fp16) where what reads it computes in fp32
    int8              constexpr_blockwise_shift_scale(codes int8 [out, in], scales [out, 1])
    int8gN, int4gN    constexpr_blockwise_shift_scale(codes [out, in], scales [out, in / N])
    uint8gN, uint4gN  the same with offset = zero points [out, in / N]
    lutB, lutBgN      constexpr_lut_to_dense(indices uintB [out, in], lut [1 or out / N, 1, 2^B, 1])
    on iOS 17
    int8              constexpr_affine_dequantize(codes int8 [out, in], scales [out])
    lutB              constexpr_lut_to_dense(indices packed into bytes, lut [2^B], shape)

A placeholder is one zero seen at every place (strides of 0): building a program costs no memory for weights.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.choices import System
from exporters.coreml.backend import Var, mb, types
from exporters.onnx.quantize import Kept
from exporters.student.weights.weight import Weight
from quantization.calibration import Calibration
from quantization.codecs.codec import encode_codes
from quantization.codecs.floating import encode_float
from quantization.codecs.integer import IntegerTensor
from quantization.codecs.lookup import LookupTensor
from quantization.profile import Profile
from quantization.schemes import Scheme

Load = Callable[[], np.ndarray]
PACKED_BITS, INT8_BITS = (1, 2, 4, 6, 8), 8
_SIGNED: dict[int, Any] = {8: np.dtype(np.int8), 4: types.np_int4_dtype}
_INDICES: dict[int, Any] = {
    1: types.np_uint1_dtype,
    2: types.np_uint2_dtype,
    3: types.np_uint3_dtype,
    4: types.np_uint4_dtype,
    6: types.np_uint6_dtype,
    8: np.dtype(np.uint8),
}


def unsupported_on_ios17(scheme: Scheme) -> str:
    """Why no constant of any shape can be in a scheme there; empty where some can."""
    if scheme.block is not None:
        return "iOS 17 has no constants in blocks or with several tables: use int8 or one table"
    if scheme.kind == "lookup" and scheme.bits not in PACKED_BITS:
        return f"iOS 17 has no indices of {scheme.bits} bits"
    if scheme.kind == "integer" and scheme.bits != INT8_BITS:
        return f"iOS 17 has no integers of {scheme.bits} bits"
    return ""


def unsupported(shape: tuple[int, ...], scheme: Scheme, system: System = "iOS18") -> str:
    """Why Core ML has no constant of a shape in a scheme; empty where it has one."""
    if system == "iOS17" and (reason := unsupported_on_ios17(scheme)):
        return reason
    if scheme.dynamic_activations:
        return "Core ML rounds activations statically only: use int8"
    if scheme.kind == "lookup":
        return _unsupported_table(shape[0], scheme)
    return _unsupported_integers(shape, scheme) if scheme.kind == "integer" else ""


def _unsupported_table(rows: int, scheme: Scheme) -> str:
    if scheme.bits not in _INDICES:
        return f"Core ML has no indices of {scheme.bits} bits"
    uneven = scheme.block is not None and rows % scheme.block
    return f"its {rows} output channels are no multiple of {scheme.block}" if uneven else ""


def _unsupported_integers(shape: tuple[int, ...], scheme: Scheme) -> str:
    if scheme.bits not in _SIGNED:
        return f"Core ML has no integers of {scheme.bits} bits"
    columns = int(np.prod(shape[1:], dtype=np.int64))
    uneven = scheme.block is not None and (len(shape) > 2 or columns % scheme.block)
    return f"it is no matrix whose {columns} input channels are a multiple of {scheme.block}" if uneven else ""


@dataclass
class _Encoded:
    """One weight's encoding: made when its first part is written, dropped after its last."""

    weight: Weight
    scheme: Scheme
    calibration: Calibration | None
    parts: int
    tensor: IntegerTensor | LookupTensor | None = None
    taken: int = 0

    def take(self) -> IntegerTensor | LookupTensor:
        if self.tensor is None:
            sensitivity = (
                None if self.calibration is None else self.calibration.sensitivity(self.weight.component, self.weight.name)
            )
            self.tensor = encode_codes(self.weight.load(), self.scheme, self.weight.origin, sensitivity)
        tensor, self.taken = self.tensor, self.taken + 1
        if self.taken == self.parts:
            self.tensor, self.taken = None, 0
        return tensor


class Constants:
    """The constants of one program.

    Args:
        profile: how weights are stored.
        system: the oldest that must run the program.
        calibration: what is known of the weights; without it every scheme is data-free.

    Attributes:
        loads: by constant name, how to read its value.
        kept: weights that keep their floating-point form though a rule gave them another, with the reasons.
        parameters: how many of the student's numbers the program's weights stand for.
    """

    def __init__(self, profile: Profile, system: System = "iOS18", calibration: Calibration | None = None) -> None:
        self.profile, self.system, self.calibration = profile, system, calibration
        self.loads: dict[str, Load] = {}
        self.kept: list[Kept] = []
        self.parameters = 0
        self._names: set[str] = set()

    def name(self, wanted: str) -> str:
        """A name that MIL takes and that is not in use."""
        base = re.sub(r"[^A-Za-z0-9_]", "_", wanted)
        base = base if base[:1].isalpha() else f"_{base}"
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def lazy(self, name: str, shape: tuple[int, ...], dtype: Any, load: Load) -> Var:
        """A constant whose value is read when it is written."""
        name = self.name(name)
        self.loads[name] = load
        return mb.const(val=np.broadcast_to(np.zeros((), dtype), shape), name=name)

    def weight(self, weight: Weight, wide: bool, shape: tuple[int, ...] | None = None) -> Var:
        """A student's weight in its profile's scheme.

        Args:
            weight: what to store.
            wide: whether what reads it computes in fp32.
            shape: what its reader takes it for; the weight's own by default.
        """
        target = shape or weight.shape
        self.parameters += weight.elements if weight.component else 0
        scheme = self.profile.scheme(weight.component, weight.name) if weight.name and len(weight.shape) > 1 else None
        if scheme is not None and scheme.kind != "float":
            if not (reason := unsupported(weight.shape, scheme, self.system)):
                return self._coded(weight, scheme, wide, target)
            self.kept.append(Kept(weight.component, weight.name, scheme.name, reason))
        half = len(weight.shape) > 1 and weight.name and (scheme is None or scheme.name != "fp32")
        if half or not wide:
            load = functools.partial(_floating, weight, "fp16", target)
            stored = self.lazy(weight.name or weight.origin, target, np.float16, load)
            if not wide:
                return stored
            return mb.constexpr_cast(source_val=stored, output_dtype="fp32", name=self.name(f"{stored.name}.wide"))
        return self.lazy(weight.name or weight.origin, target, np.float32, functools.partial(_floating, weight, "fp32", target))

    def _coded(self, weight: Weight, scheme: Scheme, wide: bool, shape: tuple[int, ...]) -> Var:
        values = np.float32 if wide else np.float16
        parts = 2 + scheme.zero_points
        encoded = _Encoded(weight, scheme, self.calibration, parts)
        rest = (1,) * (len(shape) - 1)
        if scheme.kind == "lookup":
            tables = 1 if scheme.block is None else shape[0] // scheme.block
            entries = 1 << scheme.bits
            if self.system == "iOS17":
                return self._packed(weight, scheme, encoded, shape, values)
            table_shape = (tables, *rest, entries, 1)
            indices = self.lazy(f"{weight.name}.indices", shape, _INDICES[scheme.bits], lambda: _codes(encoded, shape))
            lut = self.lazy(f"{weight.name}.lut", table_shape, values, lambda: _tables(encoded, table_shape, values))
            return mb.constexpr_lut_to_dense(indices=indices, lut=lut, name=self.name(f"{weight.name}.dense"))
        if self.system == "iOS17":
            return mb.constexpr_affine_dequantize(
                quantized_data=self.lazy(f"{weight.name}.codes", shape, np.int8, lambda: _codes(encoded, shape)),
                scale=self.lazy(f"{weight.name}.scales", shape[:1], values, lambda: _scales(encoded, shape[:1], values)),
                zero_point=np.int8(0),
                axis=0,
                name=self.name(f"{weight.name}.dense"),
            )
        blocks = 1 if scheme.block is None else shape[1] // scheme.block
        scale_shape = (shape[0], blocks, *rest[1:])
        stored = _SIGNED[scheme.bits]
        inputs = {
            "data": self.lazy(f"{weight.name}.codes", shape, stored, lambda: _codes(encoded, shape)),
            "scale": self.lazy(f"{weight.name}.scales", scale_shape, values, lambda: _scales(encoded, scale_shape, values)),
        }
        if scheme.zero_points:
            inputs["offset"] = self.lazy(f"{weight.name}.zeros", scale_shape, stored, lambda: _zeros(encoded, scale_shape))
        return mb.constexpr_blockwise_shift_scale(**inputs, name=self.name(f"{weight.name}.dense"))

    def _packed(self, weight: Weight, scheme: Scheme, encoded: _Encoded, shape: tuple[int, ...], values: Any) -> Var:
        """IOS 16's form of a table: indices packed into bytes, the first in the lowest bits."""
        count, entries = -(-int(np.prod(shape, dtype=np.int64)) * scheme.bits // 8), (1 << scheme.bits,)
        return mb.constexpr_lut_to_dense(
            indices=self.lazy(f"{weight.name}.indices", (count,), np.uint8, lambda: _pack(_codes(encoded, shape), scheme.bits)),
            lut=self.lazy(f"{weight.name}.lut", entries, values, lambda: _tables(encoded, entries, values)),
            shape=np.asarray(shape, np.uint32),
            name=self.name(f"{weight.name}.dense"),
        )


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes below ``2^bits`` in a row, ``bits`` each, the first in the lowest bits of the first byte.

    >>> [f"{byte:08b}" for byte in _pack(np.array([1, 2, 3, 0, 3], np.uint8), 2)]
    ['00111001', '00000011']
    """
    each = np.unpackbits(codes.reshape(-1, 1).astype(np.uint8), axis=1, count=bits, bitorder="little")
    return np.packbits(each.reshape(-1), bitorder="little")


def _floating(weight: Weight, scheme: str, shape: tuple[int, ...]) -> np.ndarray:
    return encode_float(weight.load(), scheme, weight.origin).reshape(shape)


def _codes(encoded: _Encoded, shape: tuple[int, ...]) -> np.ndarray:
    tensor = encoded.take()
    if isinstance(tensor, LookupTensor):
        return tensor.codes.reshape(shape)
    return tensor.codes.reshape(len(tensor.codes), -1)[:, : tensor.columns].reshape(shape)


def _tables(encoded: _Encoded, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    tensor = encoded.take()
    assert isinstance(tensor, LookupTensor)
    return tensor.tables.reshape(shape).astype(dtype)


def _scales(encoded: _Encoded, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    tensor = encoded.take()
    assert isinstance(tensor, IntegerTensor)
    return tensor.scales.reshape(shape).astype(dtype)


def _zeros(encoded: _Encoded, shape: tuple[int, ...]) -> np.ndarray:
    tensor = encoded.take()
    assert isinstance(tensor, IntegerTensor)
    assert tensor.zeros is not None
    return tensor.zeros.reshape(shape)
