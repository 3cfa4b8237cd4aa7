"""GGUF files: floats are what they are, codes what the format says; names and shapes as before they were stored."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest

from distillation.random_students import PRESETS, make_student
from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.student import Student
from quantization.codecs.codec import roundtrip
from quantization.codecs.integer import decode_integer, encode_integer_with_feedback
from quantization.schemes import parse_scheme
from tests.helpers import original_layout as original

Arrays = dict[str, np.ndarray]
T5_NAMES = {
    "SelfAttention.q": "attn_q",
    "SelfAttention.k": "attn_k",
    "SelfAttention.v": "attn_v",
    "SelfAttention.o": "attn_o",
    "SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.layer_norm": "attn_norm",
    "wi_0": "ffn_gate",
    "wi_1": "ffn_up",
    "DenseReluDense.wo": "ffn_down",
    "layer.1.layer_norm": "ffn_norm",
}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Heads of 64 channels, rows of whole blocks of 32."""
    shape = replace(PRESETS["tiny"], heads=1, head_dim=64, layers=3, dual_layers=2)
    return open_student(make_student(shape, tmp_path_factory.mktemp("gguf") / "student"))


def write(file: Path, arrays: Arrays, kind: str, architecture: str = "sd3") -> Path:
    """As ComfyUI-GGUF's converter does: matrices in one type, the rest in fp32."""
    writer = gguf.GGUFWriter(str(file), architecture)
    quant = gguf.GGMLQuantizationType[kind]
    for name, array in arrays.items():
        value = np.ascontiguousarray(array, np.float32)
        if kind == "F32" or value.ndim != 2 or value.shape[1] % 32:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def bare(student: Student) -> Arrays:
    return {name.removeprefix("model.diffusion_model."): value for name, value in original.transformer(student).items()}


def rounded(value: np.ndarray, kind: str) -> np.ndarray:
    """The format's own rules, written down once more: blocks of 32, a scale in fp16."""
    value = value.astype(np.float32)
    if kind in ("F32", "F16", "BF16"):
        return value.astype({"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]).astype(np.float32)
    blocks = value.reshape(*value.shape[:-1], -1, 32)
    if kind == "Q8_0":
        scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
        codes = np.where(scale > 0, np.round(blocks / np.where(scale > 0, scale, 1)), 0)
        return (codes * scale.astype(np.float16).astype(np.float32)).reshape(value.shape)
    first = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1) / np.float32(-8)
    codes = np.clip(np.trunc(np.where(first != 0, blocks / np.where(first != 0, first, 1), 0) + np.float32(8.5)), 0, 15) - 8
    return (codes * first.astype(np.float16).astype(np.float32)).reshape(value.shape)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_a_transformer(kind: str, student: Student, tmp_path: Path) -> None:
    """Fused projections are split after they are decoded; what is exact in the file is exact here."""
    file = write(tmp_path / "sd3.gguf", bare(student), kind)
    opened = open_student(student.path, components={"transformer": file})
    assert opened.weights["transformer"].keys() == student.weights["transformer"].keys()
    for name, weight in opened.weights["transformer"].items():
        own = student.weights["transformer"][name].load()
        stored_in_codes = own.ndim == 2 and own.shape[1] % 32 == 0
        expected = rounded(own, kind) if stored_in_codes else own.astype(np.float32)
        np.testing.assert_allclose(weight.load().astype(np.float32), expected, rtol=1e-6, atol=0, err_msg=name)
    told = [note for note in opened.notes if f"stored as {kind} (GGUF)" in note]
    assert len(told) == (kind in ("Q8_0", "Q4_0"))
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    shutil.rmtree(folder / "transformer")
    alone = open_student(shutil.copy(file, folder / "sd3.gguf"))
    name = "transformer_blocks.0.attn.to_k.weight"
    assert np.array_equal(alone.weights["transformer"][name].load(), opened.weights["transformer"][name].load())


@pytest.mark.parametrize(
    ("kind", "scheme", "kept"),
    [("Q4_0", "int4g32", True), ("Q5_0", "int8g32", True), ("Q8_0", "int8g32", True), ("Q4_1", "uint4g32", False)],
)
def test_codes_are_kept_where_the_scheme_is_the_same(kind: str, scheme: str, kept: bool) -> None:
    """Blocks of 32 with one scale: stored again bit for bit, whatever sign the largest value has. Q4_1's zero is no code."""
    heavy = 0.03 * np.random.default_rng(0).standard_t(4, (96, 256)).astype(np.float32)
    quant = gguf.GGMLQuantizationType[kind]
    decoded = gguf.quants.dequantize(gguf.quants.quantize(heavy, quant), quant)
    again = roundtrip(decoded, parse_scheme(scheme), "weight")
    assert np.array_equal(again, decoded) == kept
    gram = np.cov(np.random.default_rng(1).standard_normal((256, 512)).astype(np.float32))
    with_feedback = decode_integer(encode_integer_with_feedback(decoded, parse_scheme(scheme), "weight", gram))
    assert np.array_equal(with_feedback, decoded) == kept


def test_shapes_that_the_format_has_lost(student: Student, tmp_path: Path) -> None:
    """llama.cpp's own tools leave sizes of 1 in front out."""
    arrays = bare(student)
    arrays["pos_embed"] = arrays["pos_embed"][0]
    opened = open_student(student.path, components={"transformer": write(tmp_path / "sd3.gguf", arrays, "F16")})
    assert (
        opened.weights["transformer"]["pos_embed.pos_embed"].shape == student.weights["transformer"]["pos_embed.pos_embed"].shape
    )


def t5_name(name: str) -> str:
    if name == "shared.weight":
        return "token_embd.weight"
    if name == "encoder.final_layer_norm.weight":
        return "enc.output_norm.weight"
    block = name.split(".")[2]
    return f"enc.blk.{block}.{next(theirs for ours, theirs in T5_NAMES.items() if f'{ours}.weight' in name)}.weight"


def test_t5_under_llama_cpps_names(student: Student, tmp_path: Path) -> None:
    arrays = {t5_name(name): weight.load() for name, weight in student.weights["text_encoder_3"].items()}
    opened = open_student(student.path, components={"text_encoder_3": write(tmp_path / "t5.gguf", arrays, "F32", "t5encoder")})
    for name, weight in student.weights["text_encoder_3"].items():
        assert np.array_equal(opened.weights["text_encoder_3"][name].load(), weight.load().astype(np.float32)), name


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q2_K"])
def test_super_blocks_are_decoded(kind: str, student: Student, tmp_path: Path) -> None:
    """Their codes are not made here: of a file with such blocks of zeros each weight is 0, and as many as the shape says."""
    quant = gguf.GGMLQuantizationType[kind]
    arrays, name = bare(student), "joint_blocks.0.x_block.mlp.fc2.weight"
    rows, columns = arrays[name].shape
    assert columns % 256 == 0
    writer = gguf.GGUFWriter(str(tmp_path / "k.gguf"), "sd3")
    size = gguf.constants.GGML_QUANT_SIZES[quant][1]
    for key, value in arrays.items():
        if key == name:
            writer.add_tensor(key, np.zeros((rows, columns // 256 * size), np.uint8), raw_dtype=quant)
        else:
            writer.add_tensor(key, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_student(student.path, components={"transformer": tmp_path / "k.gguf"})
    got = opened.weights["transformer"]["transformer_blocks.0.ff.net.2.weight"].load()
    assert np.array_equal(got, np.zeros((rows, columns), np.float32))


def test_files_that_cannot_be_read(student: Student, tmp_path: Path) -> None:
    file = write(tmp_path / "sd3.gguf", bare(student), "F16")
    for cut in (4, 30, 2000, file.stat().st_size // 2):
        (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:cut])
        with pytest.raises(StudentError, match=r"truncated or not a GGUF file"):
            open_student(student.path, components={"transformer": tmp_path / "cut.gguf"})
    writer = gguf.GGUFWriter(str(tmp_path / "codes.gguf"), "sd3")
    for name, value in bare(student).items():
        writer.add_tensor(name, np.ascontiguousarray(value).astype(np.int32 if name.endswith("fc1.weight") else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(StudentError, match=r"stored in a type that is not decoded \(got I32\)"):
        open_student(student.path, components={"transformer": tmp_path / "codes.gguf"})
