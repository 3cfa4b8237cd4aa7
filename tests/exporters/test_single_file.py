from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.students import PRESETS, make_student
from exporters.errors import StudentError
from exporters.student import Student, open_student
from tests.exporters import original_layout as original


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Heads of 64 channels with and without QK-norm: what a single file's configuration can be inferred for."""
    shape = replace(PRESETS["tiny"], heads=1, head_dim=64, layers=3, dual_layers=2)
    return open_student(make_student(shape, tmp_path_factory.mktemp("single") / "student"))


def differences(a: Student, b: Student) -> list[str]:
    return [
        f"{component}: {name}"
        for component, weights in a.weights.items()
        for name, weight in weights.items()
        if not np.array_equal(weight.load(), b.weights[component][name].load())
    ]


def test_transformer_and_vae_come_from_the_file(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    shutil.rmtree(folder / "transformer")
    file = original.write(folder / "sd3.safetensors", original.transformer(student), original.vae(student))
    opened = open_student(file)
    assert differences(student, opened) == []
    relevant = (
        "num_layers",
        "dual_attention_layers",
        "qk_norm",
        "joint_attention_dim",
        "pos_embed_max_size",
        "num_attention_heads",
    )
    assert [opened.configs["transformer"][key] for key in relevant] == [student.configs["transformer"][key] for key in relevant]


def test_weights_stay_on_disk(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    file = original.write(folder / "sd3.safetensors", original.transformer(student))
    opened = open_student(file)
    # A third of a fused projection is a slice of the mapped file, not a copy.
    assert not opened.weights["transformer"]["transformer_blocks.0.attn.to_k.weight"].load().flags.owndata


def test_clips_come_from_the_file(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    for name in ("text_encoder", "text_encoder_2"):
        (folder / name / "model.safetensors").unlink()
    file = original.write(
        folder / "sd3.safetensors", original.transformer(student), original.vae(student), original.clips(student)
    )
    opened = open_student(file)
    assert differences(student, opened) == ["text_encoder: text_projection.weight"]
    assert np.array_equal(opened.weights["text_encoder"]["text_projection.weight"].load(), np.eye(32))  # as diffusers sets it


def test_file_without_the_rest_of_a_student(student: Student, tmp_path: Path) -> None:
    file = original.write(tmp_path / "sd3.safetensors", original.transformer(student))
    with pytest.raises(
        StudentError, match=r"holds no text_encoder, and neither does its folder[\s\S]*put the file into the folder"
    ):
        open_student(file)


def test_file_of_another_model(tmp_path: Path) -> None:
    save_file({"model.diffusion_model.input_blocks.0.weight": np.zeros(3, np.float32)}, tmp_path / "sd15.safetensors")
    with pytest.raises(StudentError, match="not an original Stable Diffusion 3 checkpoint"):
        open_student(tmp_path / "sd15.safetensors")


def test_missing_tensor_is_named(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    tensors = original.transformer(student)
    del tensors["model.diffusion_model.joint_blocks.1.x_block.mlp.fc1.weight"]
    with pytest.raises(StudentError, match=r"joint_blocks.1.x_block.mlp.fc1.weight"):
        open_student(original.write(folder / "sd3.safetensors", tensors))
