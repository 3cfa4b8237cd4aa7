from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from distillation.random_students import PRESETS, make_student
from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers import original_layout as original


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


def test_of_two_vaes_of_different_classes_none_is_taken(student: Student, students: dict[str, Student], tmp_path: Path) -> None:
    """The folder's is an AutoencoderTiny: taken where the file has none, and else nobody could say which was meant."""
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    shutil.rmtree(folder / "vae")
    shutil.copytree(students["tiny decoder"].path / "vae", folder / "vae")
    opened = open_student(original.write(folder / "sd3.safetensors", original.transformer(student)))
    assert opened.weights["vae"].keys() == students["tiny decoder"].weights["vae"].keys()
    file = original.write(folder / "sd3.safetensors", original.transformer(student), original.vae(student))
    with pytest.raises(StudentError, match=r"vae: _class_name: is another class \(expected AutoencoderKL, got AutoencoderTiny\)"):
        open_student(file)


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


def clips_with_a_projection(student: Student) -> original.Arrays:
    projection = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    return original.clips(student) | {"text_encoders.clip_l.transformer.text_projection.weight": projection}


def test_the_projection_of_clip_l_is_the_identity_whatever_the_file_holds(student: Student, tmp_path: Path) -> None:
    """CLIP-L's, not CLIP-G's; compared with what diffusers makes of the same file."""
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from safetensors.torch import load_file
    from transformers import CLIPTextModelWithProjection

    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    file = original.write(folder / "sd3.safetensors", original.transformer(student), clips_with_a_projection(student))
    opened = open_student(file)
    for component in ("text_encoder", "text_encoder_2"):
        reference = create_diffusers_clip_model_from_ldm(
            CLIPTextModelWithProjection, load_file(file), component, str(folder), local_files_only=True
        )
        expected = reference.state_dict()
        assert opened.weights[component].keys() == expected.keys()
        assert all(np.array_equal(w.load(), expected[name].numpy()) for name, w in opened.weights[component].items())
    assert opened.notes == (
        "text_encoder: the file's text_projection is not used: in single files of this family it is the identity",
    )


def test_an_identity_in_the_file_is_nothing_to_tell(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    tensors = clips_with_a_projection(student)
    tensors["text_encoders.clip_l.transformer.text_projection.weight"] = np.eye(32, dtype=np.float32)
    assert open_student(original.write(folder / "sd3.safetensors", original.transformer(student), tensors)).notes == ()


def other_vae(student: Student) -> original.Arrays:
    return {name.replace("first_stage_model.", "vae."): 2 * value for name, value in original.vae(student).items()}


def test_a_vae_under_its_other_name_is_read(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    opened = open_student(original.write(folder / "sd3.safetensors", original.transformer(student), other_vae(student)))
    assert opened.notes == ()
    for name, weight in student.weights["vae"].items():
        assert np.array_equal(opened.weights["vae"][name].load(), 2 * weight.load())


def test_two_vaes_are_nobodys_choice(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    both = original.vae(student) | other_vae(student)
    with pytest.raises(StudentError, match=r"holds two VAEs \(expected one, got first_stage_model\.\* and vae\.\*\)"):
        open_student(original.write(folder / "sd3.safetensors", original.transformer(student), both))


def test_tensors_that_no_component_takes_are_told(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    strange = {"conditioner.embedders.0.x": np.zeros(3), "conditioner.embedders.0.y": np.zeros(3)}
    dead = {"text_encoders.clip_l.logit_scale": np.zeros(1), "first_stage_model.loss.logvar": np.zeros(1)}
    file = original.write(folder / "sd3.safetensors", original.transformer(student), original.vae(student), strange, dead)
    assert open_student(file).notes == ("2 tensors of the file belong to no component and are not read: conditioner.embedders",)


def test_names_in_notes_are_short_and_printable(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    strange = {"\x1b[2J" * 10_000: np.zeros(3)}
    (note,) = open_student(original.write(folder / "sd3.safetensors", original.transformer(student), strange)).notes
    assert note.isprintable()
    assert len(note) <= 1000


def test_tensors_that_the_converters_would_drop_are_refused(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    tensors = original.transformer(student) | original.vae(student)
    tensors["model.diffusion_model.joint_blocks.0.x_block.attn.gate.weight"] = np.zeros(3)
    tensors["first_stage_model.decoder.mid.extra.weight"] = np.zeros(3)
    with pytest.raises(StudentError) as caught:
        open_student(original.write(folder / "sd3.safetensors", tensors))
    assert {c.what for c in caught.value.complaints} == {"unknown tensor"}
    assert len(caught.value.complaints) == 2


def test_only_what_is_used_must_have_a_type_that_can_be_read(student: Student, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    file = original.write(folder / "sd3.safetensors", original.transformer(student), original.clips(student))
    prefix = "text_encoders.t5xxl.transformer."
    t5 = {f"{prefix}{name}": torch.zeros(w.shape, dtype=torch.int16) for name, w in student.weights["text_encoder_3"].items()}
    save_file(load_file(file) | t5 | {f"{prefix}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, file)
    opened = open_student(file, without=("text_encoder_3",))
    assert not opened.has_t5
    assert opened.notes == ()
    with pytest.raises(StudentError, match=r"text_encoder_3 is stored as I16[\s\S]*--drop-t5") as caught:
        open_student(file)
    assert len(caught.value.complaints) == 1


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_wrappers_in_a_single_file(wrapper: str, student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    inner = {
        name.replace("model.diffusion_model.", f"model.diffusion_model.{wrapper}"): value
        for name, value in original.transformer(student).items()
    }
    opened = open_student(original.write(folder / "sd3.safetensors", inner))
    assert differences(student, opened) == []
    assert opened.notes == (f"checkpoint: tensors are named with {wrapper} and read without it",)


def test_a_lora_beside_a_single_file(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    file = original.write(folder / "sd3.safetensors", original.transformer(student))
    save_file({"transformer.x.lora_A.weight": np.ones((2, 2), np.float32)}, folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(StudentError, match=r"pytorch_lora_weights.safetensors: is a LoRA"):
        open_student(file)
    assert open_student(file, ignore_lora=True).adapters == (folder / "pytorch_lora_weights.safetensors",)


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


Change = Callable[[original.Arrays], object]
PREFIX = "model.diffusion_model."


def reshaped(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda tensors: tensors.update({name: change(tensors[name])})


DAMAGES: dict[str, tuple[Change, str]] = {
    "no positions": (lambda t: t.pop(f"{PREFIX}pos_embed"), r"transformer: its tensors .* KeyError: 'pos_embed'"),
    "flat patches": (reshaped(f"{PREFIX}x_embedder.proj.weight", np.ravel), r"transformer: its tensors are not laid out"),
    "one row of three": (
        reshaped(f"{PREFIX}joint_blocks.0.x_block.attn.qkv.weight", lambda a: a[:1]),
        r"transformer: its tensors are not laid out",
    ),
    "no rows": (reshaped(f"{PREFIX}context_embedder.bias", lambda a: a[:0]), r"context_embedder.bias has no rows"),
    "a norm is missing": (
        lambda t: t.pop(f"{PREFIX}joint_blocks.1.x_block.attn.ln_q.weight"),
        r"not laid out .*joint_blocks.1.x_block.attn.ln_q.weight",
    ),
    "a block that is no number": (lambda t: t.update({f"{PREFIX}joint_blocks.x.y": np.zeros(3)}), r"not laid out .*'x'"),
    "no level of the VAE": (
        lambda t: t.pop("first_stage_model.encoder.down.2.block.0.conv2.weight"),
        r"vae: its tensors are not laid out as Stable Diffusion 3's: KeyError: 'encoder.down.2",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_refused_by_component(change: Change, message: str, student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    tensors = original.transformer(student) | original.vae(student)
    change(tensors)
    with pytest.raises(StudentError, match=message):
        open_student(original.write(folder / "sd3.safetensors", tensors))


def test_an_encoder_whose_width_is_not_said(student: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student.path, tmp_path / "s"))
    file = original.write(folder / "sd3.safetensors", original.transformer(student), original.clips(student))
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"projection_dim": None}))
    with pytest.raises(StudentError, match="text_encoder: its tensors are not laid out"):
        open_student(file)
