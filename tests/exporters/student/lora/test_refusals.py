"""What cannot be merged is told in one message that fits a screen, whose first line says what the file is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from distillation.random_students import PRESETS, make_student
from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers import lora_files as files

Tensors = dict[str, np.ndarray]
Q = "transformer.transformer_blocks.0.attn.to_q"


def refused(student: Student, lora: Path | str) -> StudentError:
    with pytest.raises(StudentError) as caught:
        open_student(student.path, lora=[lora])
    assert len(str(caught.value).splitlines()) < 25
    assert max(map(len, str(caught.value).splitlines())) < 1100
    return caught.value


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


def without(pattern: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if not re.search(pattern, name)}


def put(name: str, value: object, dtype: type = np.float32) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: np.asarray(value, dtype)}


def with_nan(tensors: Tensors) -> Tensors:
    value = tensors[f"{Q}.lora_A.weight"].astype(np.float16)
    value[1, 1] = np.nan
    return tensors | {f"{Q}.lora_A.weight": value}


CHANGED: dict[str, tuple[Callable[[Tensors], Tensors], str, str]] = {
    "A without B": (without(r"\.0\.attn\.to_q\.lora_B"), "cannot be merged", r"to_q: has A \(down\) without B \(up\)"),
    "B without A": (without(r"\.0\.attn\.to_q\.lora_A"), "cannot be merged", r"to_q: has B \(up\) without A \(down\)"),
    "alpha alone": (put("transformer.x.alpha", 1), "cannot be merged", r"transformer.x: has alpha, and no halves"),
    "rank mismatch": (
        put(f"{Q}.lora_A.weight", np.ones((3, 48))),
        "cannot be merged",
        r"different ranks .*A \[3, 48\], B \[48, 4\]",
    ),
    "rank zero": (put(f"{Q}.lora_A.weight", np.ones((0, 48))), "cannot be merged", r"the halves are no matrices"),
    "vectors": (put(f"{Q}.lora_A.weight", np.ones(48)), "cannot be merged", r"the halves are no matrices"),
    "NaN": (with_nan, "cannot be merged", r"to_q.lora_A.weight: holds NaN or infinity"),
    "infinite alpha": (put(f"{Q}.alpha", np.inf), "cannot be merged", r"to_q.alpha: holds NaN or infinity"),
    "alpha of many": (put(f"{Q}.alpha", [1, 2]), "cannot be merged", r"alpha is wrong \(expected one number, got \[2\]\)"),
    "whole numbers": (put(f"{Q}.lora_A.weight", np.ones((4, 48)), np.int64), "cannot be merged", r"stored as integers"),
    "a weight beside": (put("transformer.proj_out.weight", 1), "cannot be merged", r"proj_out.weight: is no part of a LoRA"),
    "two adapters": (put(f"{Q}.lora_A.second.weight", np.ones((4, 48))), "cannot be merged", r"has two tensors for down"),
    "wide B": (
        lambda tensors: {"x.lora_A.weight": np.ones((4, 16, 2, 2)), "x.lora_B.weight": np.ones((48, 4, 2, 2))},
        "cannot be merged",
        r"x: B spans several pixels, which is not merged \(expected B \[outputs, rank, 1, 1\]",
    ),
    "a misspelled module": (
        renamed("0.attn.to_q.", "0.attn.to_qq."),
        "is a LoRA that does not fit this student",
        r"transformer_blocks.0.attn.to_qq: no such module \(expected something like transformer_blocks.0.attn.to_q\)",
    ),
    "a block too many": (
        renamed("transformer_blocks.0.attn.to_q.", "transformer_blocks.7.attn.to_q."),
        "is a LoRA that does not fit this student",
        r"transformer_blocks.7.attn.to_q: no such module",
    ),
    "Flux": (
        lambda tensors: {
            f"transformer.single_transformer_blocks.{i}.proj_mlp.lora_{h}.weight": np.ones((4, 4))
            for i in range(38)
            for h in "AB"
        },
        "is a LoRA of Flux, and does not fit this student",
        r"single_transformer_blocks.0.proj_mlp, single_transformer_blocks.1.proj_mlp, [^ ]* and 35 more: are no modules",
    ),
    "U-Net": (
        lambda tensors: {
            f"lora_unet_down_blocks_{i}_x.lora_{h}.weight": np.ones((4, 4)) for i in range(38) for h in ("down", "up")
        },
        "is a LoRA of a U-Net",
        r"are no modules of this student",
    ),
    "DoRA of another size": (
        put(f"{Q}.lora_magnitude_vector", np.ones(7)),
        "is a LoRA that does not fit",
        r"magnitudes have another size \(expected \[48\] lengths of rows, got \[7\]\)",
    ),
    "DoRA by columns": (
        put(f"{Q}.dora_scale", np.ones((1, 48))),
        "is a LoRA that does not fit",
        r"lengths of columns is not merged",
    ),
    "bias of none": (
        put("transformer.text_projection.lora_B.bias", np.ones(3)),
        "cannot be merged",
        r"text_projection: has bias, and no halves",
    ),
    "LoHa": (renamed("lora_A.weight", "hada_w1_a"), "is a LoHa, not a LoRA", r"trained otherwise than a LoRA"),
    "LoKr": (renamed("lora_A.weight", "lokr_w1"), "is a LoKr, not a LoRA", r"trained otherwise"),
    "IA3": (renamed("lora_A.weight", "ia3_l"), "is a IA3, not a LoRA", r"trained otherwise"),
    "whole differences": (put("lora_unet_x.diff", 1), "is a difference of whole weights, not a LoRA", r"trained otherwise"),
    "a student": (
        lambda tensors: {"text_model.final_layer_norm.weight": np.ones(4)},
        "holds text encoders and no transformer",
        r"holds no LoRA \(expected tensors named \*.lora_A.weight",
    ),
    "anything": (lambda tensors: {"x": np.ones(4)}, "is not a LoRA", r"got 1 others, e.g. x\)"),
    "nothing": (lambda tensors: {}, "is not a LoRA", r"got 0 others\)"),
    "attached": (
        lambda tensors: {"proj_out.base_layer.weight": np.ones(4), "proj_out.lora_A.default.weight": np.ones((4, 4))},
        "holds weights with a LoRA attached",
        r"unload_lora_weights",
    ),
}


@pytest.mark.parametrize(("change", "headline", "said"), CHANGED.values(), ids=CHANGED)
def test_a_file_that_cannot_be_merged(change, headline: str, said: str, students: dict[str, Student], tmp_path: Path) -> None:
    tensors = change(files.diffusers(files.products(students["tiny"], "transformer")))
    error = refused(students["tiny"], files.write(tmp_path / "x.safetensors", tensors))
    assert "x.safetensors" in error.headline
    assert headline in error.headline
    assert re.search(said, str(error)), str(error)
    assert error.remedy


def test_a_lora_of_a_larger_model_is_one_complaint(students: dict[str, Student], tmp_path: Path) -> None:
    """Of more blocks and wider: 38 blocks where there are 3."""
    rng = np.random.default_rng(0)
    tensors, parts = {}, ("attn.to_q", "attn.to_k", "ff.net.2")
    for i in range(38):
        for part in parts:
            name = f"transformer.transformer_blocks.{i}.{part}"
            tensors |= {f"{name}.lora_A.weight": rng.random((4, 64)), f"{name}.lora_B.weight": rng.random((64, 4))}
    error = refused(students["tiny"], files.write(tmp_path / "large.safetensors", tensors))
    first, lost = "transformer.transformer_blocks.0.attn.to_k", [f"transformer_blocks.10.{part}" for part in sorted(parts)]
    assert "is a LoRA of another model or another size of it, and does not fit this student." in error.headline
    assert [str(complaint) for complaint in error.complaints] == [
        f"transformer: 9 of 9 layers have other sizes, e.g. {first} (expected [48, 48], got [64, 64])",
        f"{', '.join(lost)} and 102 more: are no modules of this student",
    ]


def test_many_unknown_modules_are_told_by_a_few(students: dict[str, Student], tmp_path: Path) -> None:
    tensors = renamed(".transformer_blocks.", ".blocks.")(files.diffusers(files.products(students["tiny"], "transformer")))
    error = refused(students["tiny"], files.write(tmp_path / "x.safetensors", tensors))
    assert len(error.complaints) == 6
    assert str(error.complaints[-1]) == "3 more: are wrong likewise"
    assert all("expected something like transformer_blocks." in str(complaint) for complaint in error.complaints[:-1])


def test_names_of_which_none_is_known_are_told_with_the_nearest(students: dict[str, Student], tmp_path: Path) -> None:
    tensors = {
        f"lora_unet_jointblocks_{i}_x_block_attn_qkv.lora_{half}.weight": np.ones((4, 4))
        for i in range(9)
        for half in ("down", "up")
    }
    error = refused(students["tiny"], files.write(tmp_path / "x.safetensors", tensors))
    assert "is a LoRA that does not fit this student." in error.headline
    assert "joint_blocks_0_x_block_attn_qkv)" in str(error.complaints[0])


CONFIGS: dict[str, tuple[dict[str, object], str, str]] = {
    "LoHa": ({"peft_type": "LOHA"}, "is a LOHA.", "merge it with PEFT"),
    "IA3": ({"peft_type": "IA3"}, "is a IA3.", "expected LORA, got IA3"),
    "saved modules": ({"modules_to_save": ["proj_out"]}, "cannot be merged", "modules_to_save is not supported"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "cannot be merged", "init_lora_weights = pissa_niter_4 is not supported"),
    "another rank": ({"r": 8}, "does not fit", "has another rank than .*adapter_config.json says .expected 8, got 4"),
    "rank pattern": ({"rank_pattern": {"proj_out": 2}}, "does not fit", "proj_out: has another rank .* .expected 2, got 4"),
    "alpha that is none": ({"lora_alpha": "x"}, "cannot be merged", "lora_alpha: is wrong .expected a finite number, got 'x'"),
    "alpha that is not finite": ({"lora_alpha": float("inf")}, "cannot be merged", "lora_alpha: is wrong"),
    "a pattern that is none": ({"alpha_pattern": {"(": 1}}, "cannot be merged", "alpha_pattern: is no pattern"),
    "a pattern that never ends": ({"rank_pattern": {"(a+)+b": 1}}, "cannot be merged", "repeats a repetition"),
    "a pattern too long": ({"rank_pattern": {"a" * 501: 1}}, "cannot be merged", "is too long .expected 500 characters, got 501"),
    "patterns that are none": ({"alpha_pattern": [1]}, "cannot be merged", "numbers by patterns of module names"),
    "DoRA without lengths": ({"use_dora": True}, "does not fit", "lacks the magnitudes of a DoRA"),
}


@pytest.mark.parametrize(("config", "headline", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_cannot_be_followed(
    config: dict[str, object], headline: str, said: str, students: dict[str, Student], tmp_path: Path
) -> None:
    folder = files.peft(tmp_path / "peft", files.products(students["tiny"], "transformer"), **config)
    error = refused(students["tiny"], folder)
    assert "adapter_model.safetensors" in error.headline
    assert headline in error.headline
    assert re.search(said, str(error)), str(error)
    assert error.remedy


def test_peft_without_its_configuration(students: dict[str, Student], tmp_path: Path) -> None:
    """Alpha stands there alone: without it the sum would be another, in silence."""
    folder = files.peft(tmp_path / "peft", files.products(students["tiny"], "transformer"))
    (folder / "adapter_config.json").unlink()
    error = refused(students["tiny"], folder / "adapter_model.safetensors")
    assert "is a LoRA of PEFT's without its configuration." in error.headline
    assert "download adapter_config.json beside it" in error.remedy


@pytest.mark.parametrize("content", ["{", "[]", "", "null"])
def test_a_damaged_configuration(content: str, students: dict[str, Student], tmp_path: Path) -> None:
    folder = files.peft(tmp_path / "peft", files.products(students["tiny"], "transformer"))
    (folder / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in str(refused(students["tiny"], folder))


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"transformer.peft_type": "LOKR"}'])
def test_damaged_metadata(content: str, students: dict[str, Student], tmp_path: Path) -> None:
    tensors = files.diffusers(files.products(students["tiny"], "transformer"))
    file = files.write(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": content})
    assert re.search(r"lora_adapter_metadata is damaged|expected LORA, got LOKR", str(refused(students["tiny"], file)))


def test_which_clip_must_be_said(students: dict[str, Student], tmp_path: Path) -> None:
    """Names that both have; their sizes tell, or the folder's name, or nothing does."""
    plain = students["tiny"]
    module = "text_model.encoder.layers.1.mlp.fc1"
    shapes = [plain.weights[c][f"{module}.weight"].shape for c in ("text_encoder", "text_encoder_2")]
    assert shapes[0] != shapes[1]
    for component in ("text_encoder", "text_encoder_2"):
        its = files.halves(plain, component, module, 2, np.random.default_rng(0))
        file = files.write(tmp_path / f"{component}.safetensors", files.diffusers({(component, module): its}, prefix=""))
        assert list(open_student(plain.path, lora=[file]).loras[0].layers) == [component]


def test_two_clips_of_one_size(tmp_path: Path) -> None:
    """Only the folder's name is left to tell by, and that is looked at where a component was trained with PEFT."""
    shape = PRESETS["tiny"]
    plain = open_student(make_student(replace(shape, clip_2=shape.clip), tmp_path / "s"))
    made = files.products(plain, "text_encoder")
    error = refused(plain, files.write(tmp_path / "x.safetensors", files.diffusers(made, prefix="")))
    assert "does not say what it is a LoRA of" in error.headline
    assert "got text_encoder and text_encoder_2" in str(error)
    folder = files.peft(tmp_path / "text_encoder_2", made)
    assert open_student(plain.path, lora=[folder]).loras[0].layers == {"text_encoder_2": 2}


def test_neither_clip_fits(students: dict[str, Student], tmp_path: Path) -> None:
    name = "text_model.encoder.layers.1.mlp.fc1"
    tensors = {f"{name}.lora_A.weight": np.ones((2, 7)), f"{name}.lora_B.weight": np.ones((7, 2))}
    error = refused(students["tiny"], files.write(tmp_path / "x.safetensors", tensors))
    assert "text_encoder: 1 of 1 layers have other sizes" in str(error)


def test_only_what_is_left_out(students: dict[str, Student], tmp_path: Path) -> None:
    file = files.write(tmp_path / "x.safetensors", files.diffusers(files.products(students["tiny"], "text_encoder_3")))
    with pytest.raises(StudentError, match=r"changes text_encoder_3 alone, which is left out or not there"):
        open_student(students["tiny"].path, without=("text_encoder_3",), lora=[file])


def test_pickles_are_not_opened(students: dict[str, Student], tmp_path: Path) -> None:
    for name in ("x.bin", "x.pt", "x.ckpt"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        error = refused(students["tiny"], tmp_path / name)
        assert "is a pickle checkpoint, which can run any code when opened; it was not opened" in str(error)
    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "adapter_model.bin").write_bytes(b"cos")
    assert "holds only pickle checkpoints" in refused(students["tiny"], folder).headline


def test_files_and_folders_that_are_none(students: dict[str, Student], tmp_path: Path) -> None:
    assert "does not exist" in refused(students["tiny"], tmp_path / "nothing.safetensors").headline
    (tmp_path / "empty").mkdir()
    assert "is not one LoRA" in refused(students["tiny"], tmp_path / "empty").headline
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "leads nowhere" in refused(students["tiny"], tmp_path / "link").headline
    (tmp_path / "lfs.safetensors").write_bytes(b"version https://git-lfs")
    assert "git-lfs" in str(refused(students["tiny"], tmp_path / "lfs.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert "truncated" in str(refused(students["tiny"], tmp_path / "cut.safetensors"))
    two = tmp_path / "two"
    for name in ("a", "b"):
        files.write(two / f"{name}.safetensors", files.diffusers(files.products(students["tiny"], "transformer")))
    error = refused(students["tiny"], two)
    assert "got a.safetensors, b.safetensors" in str(error)
    assert error.remedy == "name the file itself"


@pytest.mark.parametrize("which", ["adapter_model.safetensors", "adapter_config.json"])
def test_no_link_out_of_a_folder_is_followed(which: str, students: dict[str, Student], tmp_path: Path) -> None:
    folder = files.peft(tmp_path / "peft", files.products(students["tiny"], "transformer"))
    outside = (folder / which).rename(tmp_path / which)
    (folder / which).symlink_to(outside)
    assert "is a link out of its folder" in str(refused(students["tiny"], folder))


def test_an_error_of_the_student_comes_first(tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "vae" / "config.json").unlink()
    with pytest.raises(StudentError, match="vae"):
        open_student(tiny_folder, lora=[tmp_path / "nothing"])


def test_nothing_is_read_of_files_that_are_written_here(students: dict[str, Student], tmp_path: Path) -> None:
    """The helper's PEFT folder is what PEFT reads: the refusals above refuse what is wrong, not the folder."""
    folder = files.peft(tmp_path / "peft", files.products(students["tiny"], "transformer"))
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    assert len(load_file(folder / "adapter_model.safetensors")) == 22
    assert open_student(students["tiny"].path, lora=[folder]).loras[0].layers == {"transformer": 11}
