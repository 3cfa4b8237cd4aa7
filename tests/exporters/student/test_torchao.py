"""Weights that torchao rounded, against what torchao makes of them.

``torchao.safetensors`` holds matrices of 6 x 64 of normal numbers that torchao 0.18.0 rounded on a CPU (``quantize_`` of a layer,
``flatten_tensor_state_dict``), and under ``expected`` what their ``dequantize`` makes of them. ``Int4Tensor`` alone was made by
hand, as fbgemm's ``int4_row_quantize_zp`` and ``pack_int4`` do, which want a GPU.
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
from exporters.student.weights.checkpoint import SafetensorsFile, open_component
from tests.helpers.student_files import check_decoded, edit_json

MADE = Path(__file__).parent / "torchao.safetensors"
NAMES = [
    "int8.row.bfloat16",
    "int8.group.float16",
    "int8.tensor.float32",
    "int8.dynamic.bfloat16",
    "int4.unpacked.bfloat16",
    "int3.asymmetric.float32",
    "int2.axis.float16",
    "float8.bfloat16",
    "int4.packed.bfloat16",
]
T5 = "text_encoder_3/model.safetensors"
Tensors = dict[str, torch.Tensor]
Metadata = dict[str, str]


@pytest.mark.parametrize("name", NAMES)
def test_what_torchao_makes_of_them_is_read(name: str) -> None:
    check_decoded(MADE, name)


def test_parts_are_no_weights() -> None:
    names = sorted(SafetensorsFile(MADE, "transformer").names)
    assert names == sorted([f"{n}.weight" for n in NAMES] + [f"expected.{n}" for n in NAMES] + ["plain.bias"])


def rounded(folder: Path, block: int = 16) -> tuple[Tensors, Metadata, dict[str, np.ndarray]]:
    """T5's matrices in int8, as torchao lays them out, and what they are read as, by hand; written to the folder, too."""
    tensors, metadata, expected = {}, {}, {}
    for name, value in load_file(folder / T5).items():
        metadata[name] = json.dumps({"_type": "Tensor"})
        if value.ndim != 2 or "block" not in name or value.shape[1] % block:
            tensors[name] = value
            continue
        blocks = value.float().numpy().reshape(len(value), -1, block)
        scale = np.abs(blocks).max(-1) / np.float32(127)
        codes = np.rint(blocks / scale[..., None]).astype(np.int8)
        expected[name] = (codes * scale[..., None]).reshape(value.shape).astype(np.float16)
        start = name.removesuffix("weight") + "_weight_"
        tensors |= {f"{start}qdata": torch.from_numpy(codes.reshape(value.shape)), f"{start}scale": torch.from_numpy(scale)}
        data = {"block_size": [1, block], "dtype": {"_type": "torch.dtype", "_data": "float16"}}
        metadata[name] = json.dumps({"_type": "Int8Tensor", "_data": data, "_tensor_data_names": ["qdata", "scale"]})
    metadata["tensor_names"] = json.dumps([*metadata])
    save_file(tensors, folder / T5, metadata)
    edit_json(folder / "text_encoder_3" / "config.json", quantization_config={"quant_method": "torchao"})
    assert expected
    return tensors, metadata, expected


def test_a_text_encoder_of_torchao(tiny_folder: Path) -> None:
    _, _, expected = rounded(tiny_folder)
    student = open_student(tiny_folder)
    for name, wanted in expected.items():
        assert np.array_equal(student.weights["text_encoder_3"][name].load(), wanted), name
    assert "text_encoder_3: stored as Int8Tensor (torchao): the student is what is left of it" in student.notes


def test_how_inputs_were_rounded_is_not_read(tiny_folder: Path) -> None:
    """Of a layer whose inputs have a fixed scale; types that no weight has are among it."""
    tensors, metadata, expected = rounded(tiny_folder)
    name = first(metadata)
    tensors |= {
        part(name, "act_quant_scale"): torch.ones(1),
        part(name, "act_quant_zero_point"): torch.zeros(1, dtype=torch.int32),
    }
    save_file(tensors, tiny_folder / T5, metadata)
    assert np.array_equal(open_student(tiny_folder).weights["text_encoder_3"][name].load(), expected[name])


def test_codes_and_scales_in_several_shards(tiny_folder: Path) -> None:
    """diffusers splits a state dict between any two of its tensors, and repeats all metadata in each shard."""
    tensors, metadata, expected = rounded(tiny_folder)
    (tiny_folder / T5).unlink()
    home, shards = tiny_folder / "text_encoder_3", ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith("_scale")}
    parts = ({name: tensor for name, tensor in tensors.items() if name not in scales}, scales)
    for shard, content in zip(shards, parts, strict=True):
        save_file(content, home / shard, metadata)
    where = {name: shard for shard, content in zip(shards, parts, strict=True) for name in content}
    (home / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    weights = open_component(home, "text_encoder_3").weights
    for name, wanted in expected.items():
        assert np.array_equal(weights[name].load(), wanted), name


def first(metadata: Metadata) -> str:
    return next(name for name, record in metadata.items() if "Int8Tensor" in record)


def part(name: str, which: str) -> str:
    return name.removesuffix("weight") + f"_weight_{which}"


def recorded(kind: str = "Int8Tensor", **data: object) -> Callable[[Tensors, Metadata], None]:
    def change(_: Tensors, metadata: Metadata) -> None:
        name = first(metadata)
        record = json.loads(metadata[name])
        metadata[name] = json.dumps(record | {"_type": kind, "_data": record["_data"] | data})

    return change


def without(which: str) -> Callable[[Tensors, Metadata], object]:
    return lambda tensors, metadata: tensors.pop(part(first(metadata), which))


def input_scale(tensors: Tensors, metadata: Metadata) -> None:
    tensors[part(first(metadata), "act_pre_scale")] = torch.ones(1)


def no_record(_: Tensors, metadata: Metadata) -> None:
    metadata[first(metadata)] = "{"


def deep(_: Tensors, metadata: Metadata) -> None:
    """The parser's own limit, within a record that is of a known class."""
    nested = "[" * 100_000 + "]" * 100_000
    metadata[first(metadata)] = '{"_type": "Int8Tensor", "_data": {"block_size": ' + nested + "}}"


def cut_scale(tensors: Tensors, metadata: Metadata) -> None:
    name = part(first(metadata), "scale")
    tensors[name] = tensors[name][:-1].clone()


def not_packed(tensors: Tensors, metadata: Metadata) -> None:
    recorded("Int4Tensor", shape=[3, 7])(tensors, metadata)


DAMAGE: dict[str, tuple[Callable[[Tensors, Metadata], object], str]] = {
    "another class": (recorded("Int4TilePackedTo4dTensor"), r"is quantized with torchao \(Int4TilePackedTo4dTensor\)"),
    "deep": (deep, r"is quantized with torchao \(an unknown class\)"),
    "no class": (no_record, r"is quantized with torchao \(an unknown class\)"),
    "no scales": (without("scale"), "its codes or its scales are missing"),
    "too few scales": (cut_scale, r"scale: expected \d+ of F32 or F16 or BF16, got \d+ of F32"),
    "another block": (recorded(block_size=[1, 8]), r"scale: expected \d+ of F32"),
    "a block that does not fit": (recorded(block_size=[1, 7]), "blocks: expected a division of"),
    "no block": (recorded(block_size=[0, 16]), "its record is not understood"),
    "a block of another rank": (recorded(block_size=[16]), "its record is not understood: blocks of"),
    "another type": (recorded(dtype={"_type": "torch.dtype", "_data": "int8"}), "its record is not understood: the type 'int8'"),
    "codes of another class": (recorded("Float8Tensor"), "qdata: expected .* of F8_E4M3"),
    "no zero points": (not_packed, "zero_point: expected 3 of F32"),
    "scaled inputs": (input_scale, r"whose layer scales its inputs \(AWQ, SmoothQuant\)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_what_does_not_fit_is_refused(damage: Callable[[Tensors, Metadata], object], message: str, tiny_folder: Path) -> None:
    tensors, metadata, _ = rounded(tiny_folder)
    damage(tensors, metadata)
    save_file(tensors, tiny_folder / T5, metadata)
    with pytest.raises(StudentError, match=message):
        open_student(tiny_folder)


@pytest.mark.parametrize("names", ["", "[", "{}", "[1, [2]]", '["absent.weight"]', pytest.param("[" * 100_000, id="deep")])
def test_metadata_that_name_no_weights(names: str, tiny_folder: Path) -> None:
    before = open_student(tiny_folder).weights["text_encoder_3"]
    save_file(load_file(tiny_folder / T5), tiny_folder / T5, {"tensor_names": names})
    after = open_student(tiny_folder).weights["text_encoder_3"]
    assert {name: weight.shape for name, weight in after.items()} == {name: weight.shape for name, weight in before.items()}


def test_without_its_metadata_a_file_is_called_what_it_is(tiny_folder: Path) -> None:
    tensors, _, _ = rounded(tiny_folder)
    save_file(tensors, tiny_folder / T5)
    with pytest.raises(StudentError, match="text_encoder_3 is quantized with torchao"):
        open_student(tiny_folder)
