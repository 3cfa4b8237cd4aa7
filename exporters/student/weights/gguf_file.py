"""GGUF files: weights as llama.cpp and its kin store them, in blocks of codes; decoded when they are asked for.

The package ``gguf`` reads and decodes them. Floats are what they are; codes become fp32, which is what a runtime of this format
computes with. Transformers have the names of original checkpoints (ComfyUI-GGUF), T5 encoders llama.cpp's own.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from exporters.errors import Complaint, StudentError
from exporters.student.weights.recognise import AGAIN
from exporters.student.weights.weight import Weight

EXTRA = "pip install 'flash-deploy[export]'"
_FLOATS = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_SHAPE = "comfy.gguf.orig_shape."
_T5_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)\.weight")
_T5_TENSORS = {
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
_T5_OTHERS = {"token_embd.weight": "shared.weight", "enc.output_norm.weight": "encoder.final_layer_norm.weight"}


def is_gguf(path: Path) -> bool:
    """Whether a file says that it is one."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


class GgufFile:
    """One GGUF file, mapped.

    Attributes:
        file: its path.
        names: the name of each tensor in the file, by the name that it has in a checkpoint.

    Raises:
        StudentError: it cannot be read, or the package that reads it is not installed.
    """

    def __init__(self, file: Path, component: str) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as error:
            complaint = Complaint("gguf", "is not installed")
            raise StudentError(
                f"{file} is a GGUF file, which a package reads that is not installed.", [complaint], EXTRA
            ) from error
        self.file = file
        try:
            reader = GGUFReader(file, "c")  # private: torch wants arrays that can be written to
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self._shapes = {name: _shape(reader, tensor) for name, tensor in self._tensors.items()}
        except Exception as error:  # a damaged header shows as an error of many kinds
            complaint = Complaint(f"{component}: {file}", f"truncated or not a GGUF file: {type(error).__name__}: {error}")
            raise StudentError("A weight file cannot be read.", [complaint], AGAIN) from error
        self.names = {checkpoint_name(name): name for name in self._tensors}

    def weights(self, names: Collection[str], component: str) -> dict[str, Weight]:
        """The named tensors, decoded when they are loaded.

        Raises:
            StudentError: some have types that are not decoded.
        """
        foreign = [name for name in names if not _is_decoded(self._tensors[self.names[name]].tensor_type)]
        if foreign:
            kinds = ", ".join(sorted({self._tensors[self.names[name]].tensor_type.name for name in foreign}))
            complaint = Complaint(f"{component}: {min(foreign)}", "stored in a type that is not decoded", got=kinds)
            remedy, kind = "take the file in another type", f"{component} is stored as {kinds}"
            raise StudentError(f"{component} cannot be used.", [complaint], remedy, kind)
        weights = {}
        for name in names:
            stored = self.names[name]
            dtype = _FLOATS.get(self._tensors[stored].tensor_type.name, np.dtype(np.float32))
            origin = f"{component}: {stored} in {self.file.name}"
            weights[name] = Weight(self._shapes[stored], dtype, partial(self._load, stored), origin, component, name)
        return weights

    def _load(self, stored: str) -> np.ndarray:
        tensor, shape = self._tensors[stored], self._shapes[stored]
        kind = tensor.tensor_type.name
        if kind in _FLOATS:
            array: np.ndarray = np.asarray(tensor.data).view(_FLOATS[kind]).reshape(shape)
            return array
        from gguf.quants import dequantize

        decoded: np.ndarray = dequantize(np.asarray(tensor.data), tensor.tensor_type).astype(np.float32, copy=False)
        return decoded.reshape(shape)

    def wrapper_notes(self, component: str) -> list[str]:
        """What to say of names that were stripped: there are none."""
        return []

    def coded(self, names: Collection[str]) -> str:
        """How the named tensors are stored that are codes, in words; empty where none is."""
        kinds = sorted({self._tensors[self.names[name]].tensor_type.name for name in names} - _FLOATS.keys())
        return f"stored as {' and '.join(kinds)} (GGUF): the student is what is left of it" if kinds else ""


def checkpoint_name(name: str) -> str:
    """A tensor's name in a checkpoint of transformers or of Stability's: only T5's are others.

    >>> checkpoint_name("enc.blk.3.ffn_gate.weight"), checkpoint_name("joint_blocks.0.x_block.attn.qkv.weight")
    ('encoder.block.3.layer.1.DenseReluDense.wi_0.weight', 'joint_blocks.0.x_block.attn.qkv.weight')
    """
    if (match := _T5_BLOCK.fullmatch(name)) and match[2] in _T5_TENSORS:
        return f"encoder.block.{match[1]}.{_T5_TENSORS[match[2]]}.weight"
    return _T5_OTHERS.get(name, name)


def _shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    """A tensor's shape, that of before it was stored where the file says it; sizes of 1 in front may be lost."""
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    field = reader.get_field(f"{_SHAPE}{tensor.name}")
    if field is not None:
        shape = tuple(int(field.parts[index][0]) for index in field.data)
    if tensor.name.removeprefix("model.diffusion_model.") == "pos_embed" and len(shape) == 2:
        shape = (1, *shape)
    return shape


def _is_decoded(kind: Any) -> bool:
    """Whether the package decodes a type: of a block of zeros."""
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    if kind.name in _FLOATS:
        return True
    _, size = GGML_QUANT_SIZES[kind]
    try:
        dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
