from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers.student_files import WEIGHTS, edit_json, edit_weights, same_weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Access to this model is restricted</body></html>"


def weights(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "transformer" / WEIGHTS).write_bytes(content)


def bitsandbytes_tensors(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.endswith("weight") and tensors[name].ndim == 2]:
            tensors[f"{name}.absmax"] = np.ones(3, np.float32)
            tensors[name] = np.ones((3, 1), np.uint8)

    edit_weights(folder / "transformer" / WEIGHTS, change)


def beside(*parts: str) -> Callable[[Path], None]:
    """Tensors beside a layer's, in another tool's words."""

    def damage(folder: Path) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            layer = min(name for name in tensors if name.endswith("to_q.weight")).removesuffix(".weight")
            tensors.update({f"{layer}.{part}": np.ones(3, np.float32) for part in parts})

        edit_weights(folder / "transformer" / WEIGHTS, change)

    return damage


def instead(*names: str) -> Callable[[Path], None]:
    """Files of other programs in the weights' place."""

    def damage(folder: Path) -> None:
        (folder / "transformer" / WEIGHTS).unlink()
        for name in names:
            (folder / "transformer" / name).write_bytes(b"\x08\x07")

    return damage


def sixteen_bit_codes(folder: Path) -> None:
    file = folder / "text_encoder_3" / "model.safetensors"
    tensors = load_file(file)
    save_torch({name: torch.from_numpy(value).to(torch.int16) for name, value in tensors.items()}, file)


PARTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "git-lfs": (weights(POINTER), "of transformer is a git-lfs pointer", "git lfs pull"),
    "web page": (weights(PAGE), "of transformer is a web page", "download the file itself"),
    "refusal": (weights(b"Entry not found"), "of transformer is a server's refusal", "download the file itself"),
    "GGUF": (weights(b"GGUF\x03\0\0\0"), "of transformer is a GGUF file", "with --transformer or"),
    "empty": (weights(b""), "of transformer is empty", "copy or download"),
    "pickle": (weights(b"PK\x03\x04"), "of transformer is a pickle checkpoint", "convert it to safetensors"),
    "git-lfs index of shards": (
        lambda f: (f / "vae" / WEIGHTS).rename(f / "vae" / f"{WEIGHTS}.index.json").write_bytes(POINTER),
        "index.json of vae is a git-lfs pointer",
        "git lfs pull",
    ),
    "git-lfs tokenizer": (
        lambda f: (f / "tokenizer" / "tokenizer.json").write_bytes(POINTER),
        "tokenizer.json is a git-lfs pointer",
        "git lfs pull",
    ),
    "web page configuration": (lambda f: (f / "vae" / "config.json").write_bytes(PAGE), "config.json is a web page", "download"),
    "bitsandbytes": (
        lambda f: edit_json(f / "transformer" / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "transformer is quantized with bitsandbytes",
        "the checkpoint that it was made of",
    ),
    "bitsandbytes tensors": (bitsandbytes_tensors, "transformer is quantized with bitsandbytes", "a profile makes"),
    "quanto": (
        lambda f: edit_json(f / "transformer" / "config.json", quantization_config={"quant_method": "quanto"}),
        "transformer is quantized with quanto",
        "the checkpoint that it was made of",
    ),
    "nunchaku": (beside("wscales"), "transformer is quantized with nunchaku (SVDQuant)", "the checkpoint that it was made of"),
    "nunchaku's LoRA": (beside("lora_down", "smooth_factor"), "quantized with nunchaku (SVDQuant)", "the checkpoint that"),
    "GPTQ": (beside("qweight", "qzeros"), "transformer is quantized with GPTQ or AWQ", "the checkpoint that it was made of"),
    "compressed-tensors": (beside("weight_packed"), "transformer is quantized with compressed-tensors", "the checkpoint that"),
    "nvfp4": (beside("weight_scale_2"), "transformer is quantized with nvfp4", "the checkpoint that it was made of"),
    "ONNX": (instead("model.onnx"), "transformer is an ONNX graph", "the checkpoint that it was made of, in safetensors"),
    "OpenVINO": (instead("openvino_model.xml", "openvino_model.bin"), "transformer is an OpenVINO model", "in safetensors"),
    "Flax": (instead("diffusion_flax_model.msgpack"), "transformer is a Flax checkpoint", "in safetensors"),
    "pickle beside Flax": (instead("model.bin", "flax_model.msgpack"), "transformer is a pickle checkpoint", "safetensors"),
    "codes": (sixteen_bit_codes, "text_encoder_3 is stored as I16", "or leave T5 out (--drop-t5)"),
}


@pytest.mark.parametrize(("damage", "first", "last"), PARTS.values(), ids=PARTS)
def test_the_first_line_says_what_it_is_and_the_last_what_to_do(
    damage: Callable[[Path], object], first: str, last: str, tiny_folder: Path
) -> None:
    damage(tiny_folder)
    with pytest.raises(StudentError) as caught:
        open_student(tiny_folder)
    lines = str(caught.value).splitlines()
    assert first in lines[0]
    assert last in lines[-1]
    assert len(lines) <= 4


SINGLE: dict[str, tuple[list[str], str, str]] = {
    "bare": (["joint_blocks.0.x_block.attn.qkv.weight"], "cannot be used", "with --transformer"),
    "diffusers": (["transformer_blocks.0.attn.to_q.weight"], "cannot be used", "with --transformer"),
    "text encoder": (["text_model.embeddings.token_embedding.weight"], "holds text encoders and no transformer", "diffusers"),
    "VAE": (["decoder.conv_in.weight"], "holds a VAE and no transformer", "diffusers layout"),
    "flux": (["double_blocks.0.img_attn.qkv.weight"], "is a checkpoint of Flux", "diffusers layout"),
    "nf4": (["transformer_blocks.0.attn.to_q.weight.absmax"], "is quantized with bitsandbytes", "the checkpoint that"),
    "wrapped": (["module._orig_mod.joint_blocks.0.x"], "cannot be used", "with --transformer"),
    "anything": (["a"], "is not an original Stable Diffusion 3 checkpoint", "diffusers layout"),
}


@pytest.mark.parametrize(("names", "first", "last"), SINGLE.values(), ids=SINGLE)
def test_single_files_are_called_what_they_are(names: list[str], first: str, last: str, tmp_path: Path) -> None:
    save_file({name: np.ones((2, 2), np.float32) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(StudentError) as caught:
        open_student(tmp_path / "x.safetensors")
    lines = str(caught.value).splitlines()
    assert first in lines[0]
    assert last in lines[-1]


@pytest.mark.parametrize(("content", "what"), [(POINTER, "git-lfs pointer"), (PAGE, "web page"), (b"GGUF", "GGUF file")])
@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf"])
def test_single_files_that_are_something_else(content: bytes, what: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StudentError, match=what):
        open_student(tmp_path / name)


def cache(root: Path, *revisions: str, main: str = "") -> Path:
    model = root / "models--org--sd3"
    for revision in revisions:
        (model / "snapshots" / revision).mkdir(parents=True)
    if main:
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(main)
    return model


def component(root: Path) -> Path:
    (root / "config.json").write_text("{}")
    return root


def peft(root: Path) -> Path:
    (root / "adapter_config.json").write_text("{}")
    return root


def bundle(root: Path) -> Path:
    (root / "manifest.json").write_text("{}")
    return root


def index_pointer(root: Path) -> Path:
    (root / "model_index.json").write_bytes(POINTER)
    return root


def modular(root: Path) -> Path:
    (root / "modular_model_index.json").write_text("{}")
    return root


PATHS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "hub id": (lambda root: Path("stabilityai/stable-diffusion-3.5-large-turbo"), "looks like a model hub's id", "hf download"),
    "nothing": (lambda root: root / "nothing", "does not exist", "diffusers layout"),
    "no snapshot": (lambda root: cache(root, ""), "does not say which snapshot is meant", "the cache holds no snapshot"),
    "two snapshots": (
        lambda root: cache(root, "abc", "def"),
        "does not say which snapshot is meant",
        "give one of the snapshots",
    ),
    "main that is not there": (lambda root: cache(root, "abc", main="def"), "does not say which snapshot", "give one of"),
    "whole cache": (lambda root: (cache(root, "abc"), root)[1], "is a hub cache of several models", "org/sd3"),
    "component": (component, "is one component of a pipeline", "model_index.json, one above"),
    "modular": (modular, "is a modular pipeline, not a StableDiffusion3Pipeline", "save the whole pipeline"),
    "PEFT": (peft, "is a LoRA, not a student", "and this with --lora"),
    "bundle": (bundle, "is a bundle, not a student", "that it was built of"),
    "pointer": (index_pointer, "A file of the student cannot be read", "git lfs pull"),
}


@pytest.mark.parametrize(("make", "first", "last"), PATHS.values(), ids=PATHS)
def test_paths_are_called_what_they_are(make: Callable[[Path], Path], first: str, last: str, tmp_path: Path) -> None:
    with pytest.raises(StudentError) as caught:
        open_student(make(tmp_path))
    lines = str(caught.value).splitlines()
    assert first in lines[0]
    assert last in lines[-1]


def test_what_cannot_be_read_is_not_called_truncated(tiny_folder: Path) -> None:
    (tiny_folder / "transformer" / WEIGHTS).unlink()
    (tiny_folder / "transformer" / WEIGHTS).symlink_to("../../blobs/gone")
    with pytest.raises(StudentError, match=r"leads to a file that is not there") as caught:
        open_student(tiny_folder)
    assert "truncated" not in str(caught.value)


def test_what_may_not_be_read_says_so(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))  # not by its mode: root may read everything

    monkeypatch.setattr("exporters.student.weights.checkpoint.file_kind", refuse)
    with pytest.raises(StudentError, match=r"cannot be read: Permission denied[\s\S]*check its permissions") as caught:
        open_student(tiny_folder)
    assert "truncated" not in str(caught.value)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_are_read_without_their_wrappers(wrapper: str, students: dict[str, Student], tiny_folder: Path) -> None:
    file = tiny_folder / "transformer" / WEIGHTS
    save_file({f"{wrapper}{name}": value for name, value in load_file(file).items()}, file)
    opened = open_student(tiny_folder)
    assert same_weights(students["tiny"], opened)
    assert len(opened.notes) == 1
    assert opened.notes[0].startswith("transformer: tensors are named with ")


def test_blocks_that_were_compiled_alone(students: dict[str, Student], tiny_folder: Path) -> None:
    file = tiny_folder / "transformer" / WEIGHTS
    tensors = {name.replace("transformer_blocks.0.", "transformer_blocks.0._orig_mod."): v for name, v in load_file(file).items()}
    save_file(tensors, file)
    assert same_weights(students["tiny"], open_student(tiny_folder))


def test_a_name_with_and_without_a_wrapper_is_stored_twice(tiny_folder: Path) -> None:
    edit_weights(tiny_folder / "transformer" / WEIGHTS, lambda t: t.update({"module.proj_out.bias": t["proj_out.bias"]}))
    with pytest.raises(StudentError, match=r"transformer: proj_out.bias: is stored twice"):
        open_student(tiny_folder)


def test_hundreds_of_unsupported_tensors_are_one_complaint(tiny_folder: Path) -> None:
    sixteen_bit_codes(tiny_folder)
    with pytest.raises(StudentError) as caught:
        open_student(tiny_folder)
    assert len(caught.value.complaints) == 1
    assert "more: stored in an unsupported type" in str(caught.value)
    assert not open_student(tiny_folder, without=("text_encoder_3",)).has_t5


def test_a_t5_that_is_listed_and_absent_is_told(tiny_folder: Path) -> None:
    (tiny_folder / "text_encoder_3" / "model.safetensors").unlink()
    opened = open_student(tiny_folder)
    assert not opened.has_t5
    assert opened.notes == ("text_encoder_3 (T5) is listed and its weights are not there: the student is one without it",)
