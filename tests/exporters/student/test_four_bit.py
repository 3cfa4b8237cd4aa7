"""Weights in bitsandbytes' four bits, against what bitsandbytes makes of them.

``bitsandbytes.safetensors`` holds matrices of 6 x 64 as bitsandbytes 0.50.2 stores them on a CPU (``functional.quantize_4bit`` of
normal numbers in blocks of 64, ``QuantState.as_dict(packed=True)``), and under ``expected`` what its ``dequantize_4bit`` makes of
them. Rows are whole blocks, for that function is wrong on CPUs where they are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.weights.checkpoint import SafetensorsFile
from exporters.student.weights.four_bit import FourBit
from tests.helpers.student_files import check_decoded, edit_json

MADE = Path(__file__).parent / "bitsandbytes.safetensors"
NAMES = ["nf4.0.float16", "nf4.1.bfloat16", "fp4.0.float32", "fp4.1.float16"]  # the second part: whether scales are in bytes
T5 = "text_encoder_3/model.safetensors"
BLOCK = 32
Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize("name", NAMES)
def test_what_bitsandbytes_makes_of_them_is_read(name: str) -> None:
    check_decoded(MADE, name)


def test_what_is_beside_them_is_no_weight() -> None:
    assert sorted(SafetensorsFile(MADE, "transformer").names) == sorted(
        [f"{n}.weight" for n in NAMES] + [f"expected.{n}" for n in NAMES]
    )


def stored(folder: Path) -> dict[str, np.ndarray]:
    """T5's matrices in nf4, in blocks that do not fit their rows; what they are read as, by hand."""
    table = load_file(MADE)["nf4.0.float16.weight.quant_map"].numpy()
    tensors, expected = load_file(folder / T5), {}
    for name in [name for name, value in tensors.items() if value.ndim == 2 and "block" in name]:
        flat, shape = tensors[name].float().numpy().reshape(-1), tuple(tensors[name].shape)
        blocks = np.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
        scales = np.abs(blocks).max(1)
        codes = np.abs((blocks / scales[:, None])[:, :, None] - table).argmin(2).astype(np.uint8)
        expected[name] = (table[codes] * scales[:, None]).reshape(-1)[: len(flat)].reshape(shape).astype(np.float16)
        packed = codes.reshape(-1)[: len(flat) + len(flat) % 2]
        record = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float16", "shape": shape}
        tensors[name] = torch.from_numpy((packed[::2] << 4) | packed[1::2])[:, None]
        tensors[f"{name}.absmax"] = torch.from_numpy(scales)
        tensors[f"{name}.quant_map"] = torch.from_numpy(table.copy())
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)
    save_file(tensors, folder / T5)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    edit_json(folder / "text_encoder_3" / "config.json", quantization_config=settings)
    return expected


def test_a_text_encoder_in_four_bits(tiny_folder: Path) -> None:
    expected = stored(tiny_folder)
    student = open_student(tiny_folder)
    assert expected
    for name, wanted in expected.items():
        assert np.array_equal(student.weights["text_encoder_3"][name].load(), wanted), name
    assert "text_encoder_3: stored as nf4 (bitsandbytes): the student is what is left of it" in student.notes


def without(part: str) -> Callable[[Tensors, str], object]:
    return lambda tensors, name: tensors.pop(f"{name}.{part}")


def recorded(**changes: object) -> Callable[[Tensors, str], None]:
    def change(tensors: Tensors, name: str) -> None:
        key = f"{name}.quant_state.bitsandbytes__nf4"
        record = json.loads(bytes(tensors[key].numpy())) | changes
        tensors[key] = torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)

    return change


def cut(part: str) -> Callable[[Tensors, str], None]:
    def change(tensors: Tensors, name: str) -> None:
        tensors[f"{name}{part}"] = tensors[f"{name}{part}"][:-1].clone()

    return change


def no_text(tensors: Tensors, name: str) -> None:
    tensors[f"{name}.quant_state.bitsandbytes__nf4"] = torch.tensor([255, 254], dtype=torch.uint8)


DAMAGE: dict[str, tuple[Callable[[Tensors, str], object], str]] = {
    "no scales": (without("absmax"), r"absmax: expected \d+ of F32, got 0 of nothing"),
    "no table": (without("quant_map"), "quant_map: expected 16 of F32, got 0 of nothing"),
    "too few codes": (cut(""), r"codes: expected \d+ of U8"),
    "too few scales": (cut(".absmax"), r"absmax: expected \d+ of F32"),
    "another block": (recorded(blocksize=64), r"absmax: expected \d+ of F32"),
    "no block": (recorded(blocksize=0), "its record is not understood"),
    "another shape": (recorded(shape=[3, 5]), "codes: expected 8 of U8"),
    "no shape": (recorded(shape=[-1, 5]), "its record is not understood"),
    "another type": (recorded(dtype="int8"), "its record is not understood: the type 'int8'"),
    "scales in bytes that are none": (recorded(nested_blocksize=256), r"absmax: expected \d+ of U8"),
    "no record": (no_text, "its record is not understood"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_what_does_not_fit_is_refused(damage: Callable[[Tensors, str], object], message: str, tiny_folder: Path) -> None:
    name = min(stored(tiny_folder))
    tensors = load_file(tiny_folder / T5)
    damage(tensors, name)
    save_file(tensors, tiny_folder / T5)
    with pytest.raises(StudentError, match=message):
        open_student(tiny_folder)


def test_a_record_that_is_none() -> None:
    with pytest.raises(ValueError, match="truncated"):
        FourBit.of(b"{")
