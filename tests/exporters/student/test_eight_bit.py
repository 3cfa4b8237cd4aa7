"""Weights in eight bits, against torch's own conversions and what their makers compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers import original_layout as original
from tests.helpers.student_files import edit_json

T5 = "text_encoder_3/model.safetensors"
FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def matrices(file: Path) -> dict[str, torch.Tensor]:
    """The weights of T5's linear layers, which are what is stored in eight bits."""
    return {name: value for name, value in load_file(file).items() if value.ndim == 2 and "block" in name}


def read(folder: Path, component: str = "text_encoder_3") -> dict[str, np.ndarray]:
    return {name: weight.load() for name, weight in open_student(folder).weights[component].items()}


@pytest.mark.parametrize("kind", FP8)
def test_plain_fp8_is_read_exactly(kind: str, tiny_folder: Path) -> None:
    stored = {name: value.to(FP8[kind]) for name, value in load_file(tiny_folder / T5).items()}
    save_file(stored, tiny_folder / T5)
    for name, value in read(tiny_folder).items():
        assert value.dtype == np.float16
        assert np.array_equal(value, stored[name].float().numpy()), name
    assert any(f"text_encoder_3: stored as fp8 ({kind})" in note for note in open_student(tiny_folder).notes)


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("by_row", [False, True])
def test_scales_beside_weights_count(suffix: str, by_row: bool, tiny_folder: Path) -> None:
    """In fp32, as ComfyUI multiplies; diffusers leaves them out without a word."""
    tensors, expected = load_file(tiny_folder / T5), {}
    for name, value in matrices(tiny_folder / T5).items():
        scale = value.float().abs().amax(1 if by_row else (0, 1), keepdim=by_row) / 448
        tensors[name] = (value.float() / scale).to(torch.float8_e4m3fn)
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.{suffix}"] = scale
        tensors[f"{layer}.{suffix.replace('weight', 'input')}"] = torch.tensor(3.0)
        expected[name] = (tensors[name].float() * scale).numpy()
    tensors["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(tensors, tiny_folder / T5)
    got = read(tiny_folder)
    assert got.keys() == open_student(tiny_folder).weights["text_encoder_3"].keys()
    for name, wanted in expected.items():
        assert got[name].dtype == np.float32
        assert np.array_equal(got[name], wanted), name
    assert any("fp8 (e4m3), scaled" in note for note in open_student(tiny_folder).notes)


def test_int8_of_bitsandbytes(tiny_folder: Path) -> None:
    """``int8_vectorwise_dequant``: codes times a row's largest value over 127."""
    tensors, expected = load_file(tiny_folder / T5), {}
    for name, value in matrices(tiny_folder / T5).items():
        largest = value.float().abs().amax(1)
        tensors[name] = torch.round(value.float() / largest[:, None] * 127).to(torch.int8)
        tensors[name.replace(".weight", ".SCB")] = largest
        tensors[name.replace(".weight", ".weight_format")] = torch.tensor(0, dtype=torch.uint8)
        expected[name] = (tensors[name].float() * largest[:, None] / 127).numpy()
    save_file(tensors, tiny_folder / T5)
    edit_json(
        tiny_folder / "text_encoder_3/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    )
    got = read(tiny_folder)
    for name, wanted in expected.items():
        np.testing.assert_allclose(got[name], wanted, rtol=2**-22)
    assert any("int8 (bitsandbytes), scaled" in note for note in open_student(tiny_folder).notes)


def test_a_single_file_with_scaled_text_encoders(students: dict[str, Student], tmp_path: Path) -> None:
    """As ``sd3_medium_incl_clips_t5xxlfp8scaled`` has it: T5 under its prefix, scales and marker too."""
    folder = Path(shutil.copytree(students["tiny"].path, tmp_path / "s"))
    file = original.write(folder / "sd3.safetensors", original.transformer(students["tiny"]))
    tensors, prefix, t5 = load_file(file), "text_encoders.t5xxl.transformer.", load_file(folder / T5)
    name, expected = "encoder.block.0.layer.0.SelfAttention.q.weight", {}
    scale = t5[name].float().abs().max() / 448
    t5[name] = (t5[name].float() / scale).to(torch.float8_e4m3fn)
    expected[name] = (t5[name].float() * scale).numpy()
    t5[name.replace(".weight", ".scale_weight")] = scale
    t5["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(tensors | {prefix + key: value for key, value in t5.items()}, file)
    opened = open_student(file)
    assert np.array_equal(opened.weights["text_encoder_3"][name].load(), expected[name])
    assert "text_encoder_3: stored as fp8 (e4m3), scaled: the student is what is left of it" in opened.notes


def test_scales_that_do_not_fit(tiny_folder: Path) -> None:
    tensors = load_file(tiny_folder / T5)
    name = min(matrices(tiny_folder / T5))
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[name.replace(".weight", ".scale_weight")] = torch.ones(7)
    save_file(tensors, tiny_folder / T5)
    with pytest.raises(
        StudentError, match=r"scale_weight: is no scale of its weight \(expected a number, or \d+ of them, got F32 \[7\]"
    ):
        open_student(tiny_folder)
