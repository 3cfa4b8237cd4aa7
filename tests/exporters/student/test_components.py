"""Components from elsewhere, and transformers that are alone in a file: the same weights, whatever they are called."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deploy.build import BuildRequest, build
from deploy.build.verify import verify
from deploy.bundle.inspect import inspect_path
from deploy.errors import InputError
from distillation.random_students import PRESETS, TINY_VAES, make_student
from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers import original_layout as original
from tests.helpers.student_files import WEIGHTS, edit_json

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Heads of 64 channels, which is what is taken where no norm says it."""
    shape = replace(PRESETS["tiny"], heads=1, head_dim=64, layers=3, dual_layers=2)
    return open_student(make_student(shape, tmp_path_factory.mktemp("base") / "student"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Of the same shapes and other numbers, with a small decoder for a VAE."""
    shape = replace(PRESETS["tiny"], heads=1, head_dim=64, layers=3, dual_layers=2, tiny_vae=TINY_VAES["tiny"])
    return open_student(make_student(shape, tmp_path_factory.mktemp("other") / "student", seed=1))


def stored(student: Student, component: str) -> Arrays:
    return {name: np.ascontiguousarray(weight.load()) for name, weight in student.weights[component].items()}


def same(weights: Arrays, student: Student, component: str) -> bool:
    there = student.weights[component]
    return weights.keys() == there.keys() and all(np.array_equal(there[name].load(), value) for name, value in weights.items())


def without_prefix(arrays: Arrays) -> Arrays:
    return {name.removeprefix("model.diffusion_model."): value for name, value in arrays.items()}


NAMES: dict[str, Callable[[Student], Arrays]] = {
    "original, bare": lambda student: without_prefix(original.transformer(student)),
    "original, with its prefix": original.transformer,
    "diffusers'": lambda student: stored(student, "transformer"),
    "diffusers', of a pipeline": lambda student: {f"transformer.{name}": v for name, v in stored(student, "transformer").items()},
}


@pytest.mark.parametrize("make", NAMES.values(), ids=NAMES)
def test_a_transformer_from_a_file(make: Callable[[Student], Arrays], base: Student, other: Student, tmp_path: Path) -> None:
    """Beside a pipeline that has one, and in the folder of one as the student itself."""
    wanted, file = stored(other, "transformer"), original.write(tmp_path / "t.safetensors", make(other))
    opened = open_student(base.path, components={"transformer": file})
    assert same(wanted, opened, "transformer")
    assert not same(wanted, base, "transformer")  # the comparison can fail
    assert same(stored(base, "vae"), opened, "vae")
    keys = ("num_layers", "num_attention_heads", "attention_head_dim", "dual_attention_layers", "qk_norm", "pos_embed_max_size")
    assert [opened.configs["transformer"][key] for key in keys] == [other.configs["transformer"][key] for key in keys]
    assert opened.notes[-1] == f"transformer is from elsewhere: {file}"
    folder = Path(shutil.copytree(base.path, tmp_path / "s"))
    shutil.rmtree(folder / "transformer")
    alone = open_student(shutil.copy(file, folder / "alone.safetensors"))
    assert same(wanted, alone, "transformer")


def test_folders_of_components_and_of_pipelines(base: Student, other: Student, tmp_path: Path) -> None:
    """A pipeline that has no transformer of its own is none without one."""
    folder = Path(shutil.copytree(base.path, tmp_path / "s"))
    (folder / "transformer" / WEIGHTS).unlink()
    with pytest.raises(StudentError):
        open_student(folder)
    for place in (other.path, other.path / "transformer"):
        opened = open_student(folder, components={"transformer": place, "vae": other.path / "vae"})
        assert same(stored(other, "transformer"), opened, "transformer")
        assert opened.configs["vae"]["_class_name"] == "AutoencoderTiny"  # whatever the pipeline lists


def test_a_small_vae_from_a_file(base: Student, other: Student, tmp_path: Path) -> None:
    """TAESD3's file has no configuration: it is read off the shapes, and takes latents as they are."""
    folder = Path(shutil.copytree(base.path, tmp_path / "s"))
    shutil.rmtree(folder / "vae")
    file = original.write(tmp_path / "taesd3.safetensors", stored(other, "vae"))
    opened = open_student(folder, components={"vae": file})
    assert same(stored(other, "vae"), opened, "vae")
    keys = ("encoder_block_out_channels", "decoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks")
    ours, theirs = ([list(student.configs["vae"][key]) for key in keys] for student in (opened, other))
    assert ours == theirs
    assert opened.configs["vae"]["latent_channels"] == other.configs["vae"]["latent_channels"]
    assert (opened.configs["vae"]["scaling_factor"], opened.configs["vae"]["shift_factor"]) == (1.0, 0.0)


def halves(other: Student, folder: Path) -> dict[str, Path]:
    """TAESD3's own files: each half by itself, its layers by number, the decoder's after a clamp."""
    files = {}
    for half in ("encoder", "decoder"):
        arrays = {}
        for name, value in stored(other, "vae").items():
            if name.startswith(f"{half}.layers."):
                _, _, number, rest = name.split(".", maxsplit=3)
                arrays[f"{int(number) + (half == 'decoder')}.{rest}"] = value
        files[half] = original.write(folder / f"taesd3_{half}.safetensors", arrays)
    return files


@pytest.mark.parametrize("named", ["encoder", "decoder"])
def test_a_small_vae_from_its_halves(named: str, base: Student, other: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base.path, tmp_path / "s"))
    shutil.rmtree(folder / "vae")
    opened = open_student(folder, components={"vae": halves(other, tmp_path)[named]})
    assert same(stored(other, "vae"), opened, "vae")
    keys = (
        "latent_channels",
        "encoder_block_out_channels",
        "decoder_block_out_channels",
        "num_encoder_blocks",
        "num_decoder_blocks",
    )
    ours, theirs = ([np.asarray(student.configs["vae"][key]).tolist() for key in keys] for student in (opened, other))
    assert ours == theirs


def test_half_of_a_small_vae_alone(base: Student, other: Student, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base.path, tmp_path / "s"))
    shutil.rmtree(folder / "vae")
    files = halves(other, tmp_path)
    other_name = files["encoder"].rename(tmp_path / "aside.safetensors")
    with pytest.raises(StudentError, match=r"is half of a VAE[\s\S]*expected taesd3_encoder\.safetensors beside it"):
        open_student(folder, components={"vae": files["decoder"]})
    shutil.copy(files["decoder"], files["encoder"])
    with pytest.raises(StudentError, match=r"taesd3_encoder\.safetensors: is not the other half"):
        open_student(folder, components={"vae": files["decoder"]})
    with pytest.raises(StudentError, match="expected decoder_of_aside"):
        open_student(folder, components={"vae": other_name})


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", ""])
def test_a_vae_from_a_file(prefix: str, base: Student, tmp_path: Path) -> None:
    wanted = {name: value * 2 for name, value in stored(base, "vae").items()}
    arrays = {prefix + name.removeprefix("first_stage_model."): value * 2 for name, value in original.vae(base).items()}
    opened = open_student(base.path, components={"vae": original.write(tmp_path / "vae.safetensors", arrays)})
    assert same(wanted, opened, "vae")
    named = original.write(tmp_path / "named.safetensors", wanted)
    assert same(wanted, open_student(base.path, components={"vae": named}), "vae")


def test_text_encoders_from_files(base: Student, other: Student, tmp_path: Path) -> None:
    """T5 alone in a file, as ``t5xxl_fp16``, to a student that has none and whose pipeline lists none; CLIP-G likewise."""
    folder = Path(shutil.copytree(base.path, tmp_path / "s"))
    shutil.rmtree(folder / "text_encoder_3")
    edit_json(folder / "model_index.json", text_encoder_3=[None, None])
    assert not open_student(folder).has_t5
    t5 = original.write(tmp_path / "t5xxl.safetensors", stored(other, "text_encoder_3"))
    clip = original.write(tmp_path / "clip_g.safetensors", stored(other, "text_encoder_2"))
    opened = open_student(folder, components={"text_encoder_3": t5, "text_encoder_2": clip})
    for component in ("text_encoder_2", "text_encoder_3"):
        assert same(stored(other, component), opened, component)
    keys = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "vocab_size", "relative_attention_num_buckets", "is_gated_act")
    assert [opened.configs["text_encoder_3"][key] for key in keys] == [other.configs["text_encoder_3"][key] for key in keys]


def test_what_is_from_elsewhere_is_part_of_the_fingerprint(base: Student, other: Student, tmp_path: Path) -> None:
    file = original.write(tmp_path / "t.safetensors", stored(other, "transformer"))
    opened = open_student(base.path, components={"transformer": file})
    prints = {base.fingerprint(), opened.fingerprint()}
    assert file in opened.files()
    assert base.path / "transformer" / WEIGHTS not in opened.files()
    arrays = load_file(file)
    arrays["proj_out.bias"] = arrays["proj_out.bias"] + 1
    save_file(arrays, file)
    prints.add(open_student(base.path, components={"transformer": file}).fingerprint())
    assert len(prints) == 3
    with pytest.raises(StudentError, match="has changed since the student was opened"):
        opened.check_unchanged()


def test_a_bundle_of_parts(base: Student, other: Student, tmp_path: Path) -> None:
    """Built, and verified against the same parts in diffusers; against the pipeline's own it is another student's."""
    parts = {"transformer": original.write(tmp_path / "t.safetensors", without_prefix(original.transformer(other)))}
    request = BuildRequest(
        output=tmp_path / "b", student=base.path, components=parts, precision="fp32", height=64, width=64, steps=2, keep_t5=False,
        max_sequence_length=9, parity="never",
    )  # fmt: skip
    bundle = build(request)
    assert "transformer is from elsewhere" in bundle.manifest.notes[0]
    report = verify(bundle.folder, base.path, components=parts)
    assert not report.complaints
    assert verify(bundle.folder, base.path, pictures=False).complaints
    assert inspect_path(base.path, components=parts)["notes"][0].startswith("transformer is from elsewhere")


def lora(folder: Path, base: Student) -> Path:
    return original.write(folder / "lora.safetensors", {"transformer.x.lora_A.weight": np.ones((2, 2), np.float32)})


def gguf(folder: Path, base: Student) -> Path:
    (folder / "x.gguf").write_bytes(b"GGUF\3\0\0\0")
    return folder / "x.gguf"


BAD: dict[str, tuple[Callable[[Path, Student], Path], str]] = {
    "nothing": (lambda folder, base: folder / "none", r"none does not exist[\s\S]*--vae"),
    "a LoRA": (lora, r"is a LoRA, not a vae"),
    "another component": (
        lambda folder, base: original.write(folder / "x.safetensors", stored(base, "transformer")),
        r"holds no vae[\s\S]*--vae: holds no vae \(expected tensors named encoder.conv_in.\* or",
    ),
    "another kind of file": (gguf, "truncated or not a GGUF file"),
    "an empty folder": (lambda folder, base: folder, r"config.json: no such file"),
    "half of it": (
        lambda folder, base: original.write(
            folder / "x.safetensors", {"decoder.conv_in.weight": np.ones((4, 4, 3, 3), np.float32)}
        ),
        r"cannot be converted[\s\S]*vae: its tensors are not laid out",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_what_is_no_component(make: Callable[[Path, Student], Path], message: str, base: Student, tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=message):
        open_student(base.path, components={"vae": make(tmp_path, base)})


def test_components_that_no_student_has(base: Student, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"components: unknown \(expected text_encoder, .*, got unet\)"):
        open_student(base.path, components={"unet": tmp_path})
