from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.student import Student
from exporters.student.weights.adapters import find_adapters, is_adapter

DIFFUSERS = {f"transformer.transformer_blocks.0.attn.to_q.lora_{half}.weight": np.ones((2, 2), np.float32) for half in "AB"}
STYLES: dict[str, list[str]] = {
    "diffusers": list(DIFFUSERS),
    "older diffusers": ["transformer_blocks.0.attn.processor.to_q_lora.down.weight"],
    "kohya": ["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "lora_unet_joint_blocks_0_x_block_attn_qkv.alpha"],
    "PEFT": ["base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight"],
    "DoRA": ["transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector", "x.dora_scale"],
    "LyCORIS": ["lycoris_x.hada_w1_a", "lycoris_x.lokr_w2"],
}
PLACES = [
    "pytorch_lora_weights.safetensors",
    "hyper-sd3-4steps.safetensors",  # known by what is in it
    "transformer/adapter_model.safetensors",
    "transformer/diffusion_pytorch_model.lora.safetensors",  # the name of a variant
    "transformer/lora/pytorch_lora_weights.safetensors",
    "lora/x.safetensors",
]


def write(file: Path, names: list[str]) -> Path:
    file.parent.mkdir(exist_ok=True)
    save_file({name: np.ones((2, 2), np.float32) for name in names}, file)
    return file


@pytest.mark.parametrize("names", STYLES.values(), ids=STYLES)
def test_every_style_is_known_by_its_tensors(names: list[str], tmp_path: Path) -> None:
    assert is_adapter(write(tmp_path / "x.safetensors", names))


def test_weights_are_no_adapter(students: dict[str, Student]) -> None:
    assert find_adapters(students["tiny"].path) == ()


@pytest.mark.parametrize("place", PLACES)
def test_a_lora_beside_the_weights_is_refused_unless_told(place: str, students: dict[str, Student], tiny_folder: Path) -> None:
    file = write(tiny_folder / place, list(DIFFUSERS))
    with pytest.raises(StudentError) as caught:
        open_student(tiny_folder)
    first, *_, last = str(caught.value).splitlines()
    assert f"a LoRA lies beside the weights ({place})" in first
    assert f"{file}: is a LoRA, which would be left out" in str(caught.value)
    assert last == f"What to do: merge it with --lora {file}; or draw without it: --ignore-lora"

    opened = open_student(tiny_folder, ignore_lora=True)
    assert opened.adapters == (file,)
    assert opened.notes == (f"LoRA left out: {place}. Pictures are those of the student without it.",)
    assert opened.fingerprint() == students["tiny"].fingerprint()
    assert opened.weight_files == tuple(tiny_folder / f.relative_to(students["tiny"].path) for f in students["tiny"].weight_files)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_lora_weights.bin", "my-LoRA.pt", "adapter_config.json"])
def test_what_is_not_opened_is_known_by_its_name(name: str, tiny_folder: Path) -> None:
    (tiny_folder / "text_encoder" / name).write_text("{}")
    with pytest.raises(StudentError, match=rf"text_encoder/{name}\)[\s\S]*--ignore-lora"):
        open_student(tiny_folder)


def test_a_lora_that_was_not_downloaded_is_known_by_its_name(tiny_folder: Path) -> None:
    (tiny_folder / "pytorch_lora_weights.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(StudentError, match=r"pytorch_lora_weights.safetensors: is a LoRA"):
        open_student(tiny_folder)


def test_a_lora_of_what_is_left_out_does_not_matter(tiny_folder: Path) -> None:
    write(tiny_folder / "text_encoder_3" / "adapter_model.safetensors", list(DIFFUSERS))
    assert open_student(tiny_folder, without=("text_encoder_3",)).adapters == ()


def test_weights_that_a_lora_is_attached_to_are_one_complaint(tiny_folder: Path) -> None:
    file = tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if ".attn." in name and name.endswith("weight")]:
        tensors[name.replace(".weight", ".base_layer.weight")] = tensors.pop(name)
        tensors[name.replace(".weight", ".lora_A.turbo.weight")] = np.ones((2, 2), np.float32)
        tensors[name.replace(".weight", ".lora_B.turbo.weight")] = np.ones((2, 2), np.float32)
    save_file(tensors, file)
    with pytest.raises(StudentError, match=r"student: transformer was saved with a LoRA still attached") as caught:
        open_student(tiny_folder, ignore_lora=True)
    assert len(caught.value.complaints) == 1
    assert "unload_lora_weights() called after fuse_lora()" in caught.value.remedy
    assert "as it was before the LoRA was loaded, and the LoRA's own file with --lora" in caught.value.remedy


@pytest.mark.parametrize("names", STYLES.values(), ids=STYLES)
def test_a_lora_given_as_the_student(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        StudentError,
        match=r"x.safetensors is a LoRA, not a student\.\n[\s\S]*What to do: give the student [^,]*, and this with --lora",
    ):
        open_student(write(tmp_path / "x.safetensors", names))
