"""Weights that torchao rounded, as diffusers and transformers save them (torchao's ``flatten_tensor_state_dict``).

A weight ``a.weight`` is in parts, ``a._weight_qdata`` and ``a._weight_scale`` among them; the file's metadata hold its class, its
blocks and its type under its own name. What is read is what torchao computes with (``dequantize``): codes less their zero point,
times their block's scale, in the type that the weight had. ``Int4Tensor`` adds a floating-point zero point instead: what the
kernel of its class multiplies by. How a class rounds a layer's inputs is of a runtime that does, and is not used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from exporters.student.weights.weight import TORCH_FLOATS
from quantization.errors import shortened

CODES, SCALE, ZERO, INPUT_SCALE = PARTS = "qdata", "scale", "zero_point", "act_pre_scale"
UNUSED = ("act_quant_scale", "act_quant_zero_point")  # of inputs that the runtime rounds
_AFFINE, _FLOAT8, _PACKED = ("Int8Tensor", "IntxUnpackedToInt8Tensor"), "Float8Tensor", "Int4Tensor"
READ = (*_AFFINE, _FLOAT8, _PACKED)
_PLAIN = "Tensor"
_FLOATS = ("F32", "F16", "BF16")
_CODES = {**dict.fromkeys(_AFFINE, ("I8",)), _FLOAT8: ("F8_E4M3", "F8_E5M2"), _PACKED: ("I8", "U8")}
_ZEROS = {**dict.fromkeys(_AFFINE, ("I8", *_FLOATS)), _PACKED: _FLOATS}
_OF_SCALES = {"F16": "float16", "BF16": "bfloat16"}
Size = Annotated[int, msgspec.Meta(gt=0)]
Shapes = Mapping[str, tuple[tuple[int, ...], str]]


class _Type(msgspec.Struct, frozen=True):
    name: str = msgspec.field(name="_data")


class _Data(msgspec.Struct, frozen=True):
    block_size: tuple[Size, ...] | None = None
    dtype: _Type | None = None
    shape: tuple[Size, ...] | None = None


class _Record(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="_type")
    data: _Data = msgspec.field(name="_data")


class ForeignClassError(ValueError):
    """A class of torchao's that is not read."""


def records(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file's metadata say of each weight that torchao rounded; nothing for a file of another kind.

    >>> records({"format": "pt"}), records({"tensor_names": '["a.weight"]', "a.weight": '{"_type": "Int8Tensor"}'})
    ({}, {'a.weight': '{"_type": "Int8Tensor"}'})
    """
    names = _decoded(metadata.get("tensor_names", ""))
    known = [name for name in names if isinstance(name, str) and name in metadata] if isinstance(names, list) else []
    return {name: metadata[name] for name in known if _kind(metadata[name]) != _PLAIN}


def kind_of(record: str) -> str:
    """The class that a record names, in words."""
    return f"{_kind(record) or 'an unknown class'} (torchao)"


def parts_of(name: str, names: Collection[str], parts: Collection[str] = PARTS) -> dict[str, str]:
    """The tensors that hold a weight, by part.

    >>> parts_of("a.weight", ["a._weight_qdata", "a._weight_scale", "a._weight_act_quant_scale", "a.bias"])
    {'qdata': 'a._weight_qdata', 'scale': 'a._weight_scale'}
    """
    module, _, leaf = name.rpartition(".")
    start = f"{module}._{leaf}_"
    return {part: f"{start}{part}" for part in parts if f"{start}{part}" in names}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _kind(record: str) -> str:
    content = _decoded(record)
    return str(content.get("_type", "")) if isinstance(content, dict) else ""


@dataclass(frozen=True)
class Torchao:
    """A weight that torchao rounded.

    Attributes:
        kind: torchao's class.
        shape: of the weight.
        dtype: that it is read in.
        block: how many of each axis share a scale.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    block: tuple[int, ...]

    @classmethod
    def of(cls, record: str, shapes: Shapes) -> Torchao:
        """A weight by its record.

        Args:
            record: in the file's metadata.
            shapes: shape and type of its tensors, by part.

        Raises:
            ForeignClassError: it is of a class that is not read.
            ValueError: the record is none that is understood, or its codes are missing.
        """
        kind = _kind(record)
        if kind not in READ:
            raise ForeignClassError(shortened(kind, 60) or "an unknown class")
        try:
            data = msgspec.json.decode(record, type=_Record).data
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        if CODES not in shapes or SCALE not in shapes:
            raise ValueError("its codes or its scales are missing")
        codes, (scales, scale_type) = shapes[CODES][0], shapes[SCALE]
        shape = codes if kind != _PACKED else data.shape or (*codes[:-1], 2 * codes[-1])
        name = data.dtype.name if data.dtype else _OF_SCALES.get(scale_type, "float32")
        if name not in TORCH_FLOATS:
            raise ValueError(f"the type {name!r}")
        block = data.block_size or _block(shape, scales)
        if len(block) != len(shape) or (kind == _PACKED and len(shape) < 2):
            raise ValueError(f"blocks of {list(block)} in a weight of {list(shape)}")
        return cls(kind, tuple(shape), TORCH_FLOATS[name], tuple(block))

    @property
    def blocks(self) -> tuple[int, ...]:
        """How many there are along each axis."""
        return tuple(math.ceil(size / block) for size, block in zip(self.shape, self.block, strict=True))

    def complaints(self, shapes: Shapes) -> Iterator[str]:
        """What does not fit the record.

        Args:
            shapes: shape and type of its tensors, by part.
        """
        count = math.prod(self.shape)
        if self.kind == _PACKED:
            count = math.prod(self.shape[:-1]) * math.ceil(self.shape[-1] / 2)
        elif any(size % block for size, block in zip(self.shape, self.block, strict=True)):
            yield f"blocks: expected a division of {list(self.shape)}, got {list(self.block)}"
        wanted = {CODES: (count, _CODES[self.kind]), SCALE: (math.prod(self.blocks), _FLOATS)}
        if ZERO in shapes or self.kind == _PACKED:
            wanted[ZERO] = (math.prod(self.blocks), _ZEROS.get(self.kind, ()))
        for part, (expected, kinds) in wanted.items():
            shape, stored = shapes.get(part, ((0,), "nothing"))
            if math.prod(shape) != expected or stored not in kinds:
                yield f"{part}: expected {expected} of {' or '.join(kinds) or 'nothing'}, got {math.prod(shape)} of {stored}"
        if INPUT_SCALE in shapes:
            yield f"{INPUT_SCALE}: expected a weight alone, got one whose layer scales its inputs (AWQ, SmoothQuant)"

    def decoded(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The weight.

        Args:
            tensors: by part.
        """
        if self.kind == _PACKED:
            codes = _unpacked(tensors[CODES])[..., : self.shape[-1]].reshape(self.shape)
            weight = codes * self._spread(tensors[SCALE], transposed=True) + self._spread(tensors[ZERO], transposed=True)
        else:
            codes = tensors[CODES].astype(np.float32)
            if ZERO in tensors:
                codes = (codes - self._spread(tensors[ZERO])).astype(self.dtype).astype(np.float32)
            weight = codes * self._spread(tensors[SCALE])
        value: np.ndarray = weight.astype(self.dtype)
        return value

    def _spread(self, values: np.ndarray, *, transposed: bool = False) -> np.ndarray:
        """A number for each block, for each weight, fp32.

        Args:
            values: of blocks.
            transposed: whether the last axis is stored before the one before it.
        """
        blocks = self.blocks
        if transposed:
            spread = np.swapaxes(values.reshape(*blocks[:-2], blocks[-1], blocks[-2]), -1, -2)
        else:
            spread = values.reshape(blocks)
        spread = spread.astype(np.float32)
        for axis, block in enumerate(self.block):
            if blocks[axis] > 1:  # one alone is broadcast
                spread = np.repeat(spread, block, axis)
        return spread[tuple(slice(size) for size in self.shape)]


def _block(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...]:
    """The block of a weight whose record names none: of the whole, or what its scales' shape says."""
    if math.prod(scales) == 1:
        return shape
    if len(scales) != len(shape) or any(size % count for size, count in zip(shape, scales, strict=True)):
        raise ValueError(f"scales of {list(scales)} for a weight of {list(shape)}")
    return tuple(size // count for size, count in zip(shape, scales, strict=True))


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """Two codes of a byte, from -8 to 7, the low half first."""
    both = packed.view(np.uint8)
    halves = np.stack([both & 15, both >> 4], -1).reshape(*packed.shape[:-1], -1)
    codes: np.ndarray = ((halves ^ 8).astype(np.int8) - 8).astype(np.float32)
    return codes
