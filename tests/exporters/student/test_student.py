from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from exporters.errors import StudentError
from exporters.student import configs
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT, Student
from exporters.student.tokenizers import open_tokenizers
from tests.helpers.student_files import WEIGHTS, edit_json, edit_weights, same_weights, shard


def test_built_in_student_opens() -> None:
    student = open_student()
    assert student.path == BUILTIN_STUDENT
    assert sum(w.elements for w in student.weights["transformer"].values()) == 2_569_360
    assert (student.defaults.steps, student.defaults.sigmas) == (4, (1.0, 0.75, 0.5, 0.25))
    assert student.has_t5


def test_weights_are_mapped_not_copied() -> None:
    weight = open_student().weights["transformer"]["proj_out.weight"]
    first, second = weight.load(), weight.load()
    assert not first.flags.owndata
    assert np.array_equal(first, second)


def test_shards_and_variants_hold_the_same_weights(students: dict[str, Student], tiny_folder: Path) -> None:
    shard(tiny_folder / "transformer", "diffusion_pytorch_model", "fp16")
    shard(tiny_folder / "text_encoder_3", "model")
    vae = tiny_folder / "vae"
    (vae / WEIGHTS).rename(vae / "diffusion_pytorch_model.fp16.safetensors")
    assert same_weights(students["tiny"], open_student(tiny_folder, variant="fp16"))
    assert same_weights(students["tiny"], open_student(tiny_folder))  # the only variant there is


def test_variant_must_be_chosen_among_several(tiny_folder: Path) -> None:
    folder = tiny_folder / "transformer"
    for variant in ("fp16", "bf16"):
        (folder / f"diffusion_pytorch_model.{variant}.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).unlink()
    with pytest.raises(StudentError, match=r"several variants \(got bf16, fp16\)[\s\S]*--variant"):
        open_student(tiny_folder)
    open_student(tiny_folder, variant="bf16")


def test_fingerprint_follows_content(students: dict[str, Student], tiny_folder: Path) -> None:
    assert open_student(tiny_folder).fingerprint() == students["tiny"].fingerprint()
    edit_weights(tiny_folder / "vae" / WEIGHTS, lambda t: t["decoder.conv_in.bias"].__setitem__(0, 7))
    assert open_student(tiny_folder).fingerprint() != students["tiny"].fingerprint()


def test_older_dead_tensors_are_tolerated(tiny_folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["text_model.embeddings.position_ids"] = np.arange(20)[None]

    edit_weights(tiny_folder / "text_encoder" / "model.safetensors", change)
    open_student(tiny_folder)


def rename(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["proj_aus.weight"] = tensors.pop("proj_out.weight")
        tensors["context_embedder.bias"] = np.zeros(7, np.float32)

    edit_weights(folder / "transformer" / WEIGHTS, change)


def truncate(folder: Path) -> None:
    file = folder / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    file = folder / "vae" / WEIGHTS
    file.rename(file.with_name("diffusion_pytorch_model.bin"))


def escaping_shard(folder: Path) -> None:
    shard(folder / "transformer", "diffusion_pytorch_model")
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(index.read_text().replace("diffusion_pytorch_model-00001", "../vae/diffusion_pytorch_model-00001"))


def missing_shard(folder: Path) -> None:
    shard(folder / "transformer", "diffusion_pytorch_model")
    (folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def shard_index(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "transformer" / f"{WEIGHTS}.index.json").write_text(content)


def integers(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["proj_out.weight"] = tensors["proj_out.weight"].astype(np.int64)

    edit_weights(folder / "transformer" / WEIGHTS, change)


def pipe(name: str) -> Callable[[Path], None]:
    """A named pipe, which whoever opens it waits for."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def dangling_default(folder: Path) -> None:
    (folder / "student.json").unlink()
    (folder / "student.json").symlink_to("nowhere")


BAD_STUDENTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "renamed, reshaped": (
        rename,
        (
            r"transformer: context_embedder.bias: wrong shape \(expected \[48\], got \[7\]\)"
            r"\n  - transformer: proj_aus.weight: unknown tensor .*"
            r"\n  - transformer: proj_out.weight: missing \(expected \[64, 48\]\)"
        ),
    ),
    "truncated": (truncate, r"transformer: .*truncated or not a safetensors file"),
    "pickle": (pickled, r"diffusion_pytorch_model.bin: pickle \(expected safetensors\)"),
    "no weights": (lambda f: (f / "vae" / WEIGHTS).unlink(), r"no weight file"),
    "shard outside": (escaping_shard, r"names a file outside its folder"),
    "shard with a NUL": (shard_index('{"weight_map": {"a": "a\\u0000b"}}'), r"names a file outside its folder"),
    "shard with an endless name": (shard_index(json.dumps({"weight_map": {"a": "a" * 256}})), r"names a file outside"),
    "deep index": (shard_index("[" * 100_000), r"index.json: damaged: RecursionError"),
    "index that leads nowhere": (shard_index('{"weight_map": {"a": "x.safetensors"}}'), r"x.safetensors: shard is missing"),
    "weights are integers": (integers, r"proj_out.weight: stored as integers \(expected floating point, got int64\)"),
    "weights are a pipe": (pipe(f"transformer/{WEIGHTS}"), r"safetensors: is not a file"),
    "configuration is a pipe": (pipe("vae/config.json"), r"vae/config.json: is not a file"),
    "tokenizer is a pipe": (pipe("tokenizer/tokenizer.json"), r"no tokenizer in it"),
    "shard missing": (missing_shard, r"00002-of-00002.safetensors: shard is missing"),
    "no index": (lambda f: (f / "model_index.json").unlink(), r"model_index.json: no such file"),
    "damaged json": (lambda f: (f / "vae" / "config.json").write_text("{"), r"vae/config.json.*expected a JSON object"),
    "other pipeline": (
        lambda f: edit_json(f / "model_index.json", _class_name="FluxPipeline"),
        r"expected StableDiffusion3Pipeline, got FluxPipeline",
    ),
    "other scheduler": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
        r"expected FlowMatchEulerDiscreteScheduler or DPMSolver.*, got DDIMScheduler",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), r"tokenizer: no tokenizer in it"),
    "widths disagree": (
        lambda f: edit_json(f / "text_encoder_2/config.json", projection_dim=41),
        r"text_encoder_2: text_projection.weight: wrong shape",
    ),
    "unknown default": (
        lambda f: (f / "student.json").write_text('{"step": 4}'),
        r"unknown key 'step' \(expected one of guidance_interval, guidance_scale, height",
    ),
    "wrong default": (
        lambda f: (f / "student.json").write_text('{"steps": "4"}'),
        r"steps is wrong \(expected a whole number from 1 to 1000, got '4'\)",
    ),
    "too many steps": (lambda f: (f / "student.json").write_text('{"steps": 1001}'), r"from 1 to 1000, got 1001"),
    "default that leads nowhere": (dangling_default, r"student.json: no such file"),
    "default that is true": (lambda f: (f / "student.json").write_text('{"steps": true}'), r"steps is wrong .* got True"),
    "huge default": (lambda f: (f / "student.json").write_text('{"height": 1e999}'), r"height is wrong"),
    "huge sigma": (lambda f: (f / "student.json").write_text('{"sigmas": [' + "9" * 400 + "]}"), r"sigmas is wrong"),
    "guidance": (
        lambda f: (f / "student.json").write_text('{"guidance_scale": "4.5", "skip_guidance_layers": [1, 1]}'),
        (
            r"student.json: guidance_scale: wrong \(expected a number from 0 to 100; 1 is none, got '4.5'\)"
            r"[\s\S]*skip_guidance_layers: wrong \(expected numbers of layers, each once, from 0, got \[1, 1\]\)"
        ),
    ),
    "deep json": (lambda f: (f / "student.json").write_text("[" * 200_000), r"student.json: .*recursion"),
    "junk in the index": (
        lambda f: edit_json(f / "model_index.json", text_encoder_3="T5EncoderModel"),
        r"text_encoder_3 is wrong \(expected \[library, class\], got 'T5EncoderModel'\)",
    ),
    "sigmas and steps": (
        lambda f: (f / "student.json").write_text('{"steps": 2, "sigmas": [1]}'),
        r"expected 2 sigmas, got 1",
    ),
}


BAD_VALUES = [
    ("text_encoder", "eos_token_id", None),
    ("text_encoder", "eos_token_id", [2]),
    ("text_encoder_2", "eos_token_id", 10**6),
    ("text_encoder", "hidden_act", "swish9"),
    ("text_encoder", "num_hidden_layers", 0),
    ("text_encoder", "num_hidden_layers", 10**6),  # would be made before it is counted: minutes and gigabytes
    ("transformer", "num_layers", 10**6),
    ("vae", "layers_per_block", 10**6),
    ("text_encoder", "hidden_size", True),
    ("text_encoder_3", "relative_attention_num_buckets", "32"),
    ("text_encoder_3", "dense_act_fn", "relu6"),
    ("text_encoder_3", "relative_attention_max_distance", 8),
    ("vae", "scaling_factor", None),
    ("vae", "scaling_factor", "0.18"),
    ("vae", "scaling_factor", float("nan")),
    ("vae", "scaling_factor", 0),
    ("vae", "scaling_factor", 1e-300),
    ("vae", "shift_factor", 1e300),
    ("vae", "shift_factor", float("inf")),
    ("vae", "block_out_channels", []),
    ("transformer", "dual_attention_layers", [0, 99]),
    ("transformer", "num_layers", -3),
    ("transformer", "patch_size", 2.5),
    ("transformer", "qk_norm", "layer_norm"),
    ("scheduler", "num_train_timesteps", 0),
    ("scheduler", "shift", float("nan")),
    ("scheduler", "shift", -1.0),
    ("scheduler", "base_shift", None),
    ("scheduler", "max_image_seq_len", 256),
    ("scheduler", "invert_sigmas", True),
    ("scheduler", "shfit", 3.0),
]


@pytest.fixture
def tiny_decoder_folder(students: dict[str, Student], tmp_path: Path) -> Path:
    """A copy of the student with an AutoencoderTiny, to be damaged."""
    return Path(shutil.copytree(students["tiny decoder"].path, tmp_path / "student"))


BAD_TINY_VAES: dict[str, tuple[dict[str, object], str]] = {
    "smooth resizing": ({"upsample_fn": "bilinear"}, r"vae: upsample_fn: wrong \(expected 'nearest', got 'bilinear'\)"),
    "larger steps": ({"upsampling_scaling_factor": 4}, r"vae: upsampling_scaling_factor: wrong \(expected 2, got 4\)"),
    "activation": ({"act_fn": "mish"}, r"vae: act_fn: wrong \(expected 'relu' or 'silu' or 'swish' or 'gelu', got 'mish'\)"),
    "transparent pictures": ({"out_channels": 4}, r"vae: out_channels: wrong \(expected 3, got 4\)"),
    "no shift": ({"shift_factor": None}, r"vae: shift_factor: wrong \(expected a number from -1e6 to 1e6, got None\)"),
    "no scale": ({"scaling_factor": 0}, r"vae: scaling_factor: wrong"),
    "other latents": ({"latent_channels": 4}, r"vae: decoder.layers.0.weight: wrong shape"),
    "endless blocks": ({"num_decoder_blocks": [1, 1, 1, 10**6]}, r"vae: num_decoder_blocks: wrong"),  # would be made first
    "fewer blocks": ({"num_encoder_blocks": [1, 1, 1]}, r"config.json: ValueError: `encoder_block_out_channels` should have"),
    "widths": (
        {"decoder_block_out_channels": [12, 12, 12, 16]},
        r"vae: decoder_block_out_channels: differ from level to level \(expected one width, got \[12, 12, 12, 16\]\)",
    ),
    "what the size of latents is taken from": (
        {"block_out_channels": [12, 12, 12]},
        r"vae: block_out_channels: differ from decoder_block_out_channels \(expected \[12, 12, 12, 12\], got \[12, 12, 12\]\)",
    ),
    "levels": (
        {"encoder_block_out_channels": [8, 8, 8], "num_encoder_blocks": [1, 1, 2]},
        r"vae: encoder_block_out_channels: not as many levels as the decoder \(expected 4, got 3\)",
    ),
    "another class than is listed": (
        {"_class_name": "AutoencoderKL"},
        r"vae: _class_name: is another class \(expected AutoencoderTiny, got AutoencoderKL\)",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD_TINY_VAES.values(), ids=BAD_TINY_VAES)
def test_what_no_graph_of_a_tiny_vae_would_honour_is_refused(
    changes: dict[str, object], message: str, tiny_decoder_folder: Path
) -> None:
    edit_json(tiny_decoder_folder / "vae" / "config.json", **changes)
    with pytest.raises(StudentError, match=message):
        open_student(tiny_decoder_folder)


def test_the_class_of_a_vae_is_one_that_is_known_and_listed(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    with pytest.raises(StudentError, match=r"vae: _class_name: is another class \(expected AutoencoderTiny, got AutoencoderKL\)"):
        open_student(tiny_folder)
    edit_json(tiny_folder / "model_index.json", vae=["diffusers", "AutoencoderDC"])
    message = r"vae has another class \(expected AutoencoderKL or AutoencoderTiny, got AutoencoderDC\)"
    with pytest.raises(StudentError, match=message):
        open_student(tiny_folder)


@pytest.mark.parametrize(("component", "key", "value"), BAD_VALUES, ids=str)
def test_damaged_configurations_are_refused_by_name(component: str, key: str, value: object, tiny_folder: Path) -> None:
    file = "scheduler_config.json" if component == "scheduler" else "config.json"
    edit_json(tiny_folder / component / file, **{key: value})
    with pytest.raises(StudentError, match=rf"{component.removesuffix('_2')}.*|text encoder: {key}") as caught:
        open_student(tiny_folder)
    said = str(caught.value)
    assert key in said or "config.json" in said  # transformers refuses some types itself


def test_several_damaged_values_come_at_once(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "vae" / "config.json", scaling_factor=None, shift_factor="0")
    edit_json(tiny_folder / "scheduler" / "scheduler_config.json", shift="3")
    with pytest.raises(StudentError) as caught:
        open_student(tiny_folder)
    assert [c.where for c in caught.value.complaints] == ["vae: scaling_factor", "vae: shift_factor", "scheduler: shift"]


def test_parameters_of_the_scheduler_are_diffusers_own() -> None:
    """Those that are listed are taken without diffusers; of others it is asked, and a newer one may know them."""
    own = set(inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters) - {"self"}
    assert set(configs._Scheduler.__struct_fields__) == own
    (complaint,) = configs._unknown({"shift": 3.0, "shfit": 3.0})
    assert (complaint.where, complaint.what) == ("scheduler: shfit", "unknown key")
    assert configs._unknown({"_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.1, "flow_shift": 3.0}) == []


def test_a_variant_says_for_itself_how_it_is_run(tiny_folder: Path) -> None:
    plain = open_student(tiny_folder)
    weights = tiny_folder / "transformer" / WEIGHTS
    (weights.parent / "diffusion_pytorch_model.2-steps.safetensors").write_bytes(weights.read_bytes())
    assert open_student(tiny_folder, variant="2-steps").defaults == plain.defaults  # nothing else is said of it
    (tiny_folder / "student.2-steps.json").write_text('{"steps": 2, "sigmas": [1.0, 0.5]}')
    variant = open_student(tiny_folder, variant="2-steps")
    assert (variant.defaults.steps, variant.defaults.sigmas) == (2, (1.0, 0.5))
    assert open_student(tiny_folder).defaults == plain.defaults
    assert open_student(tiny_folder).fingerprint() == plain.fingerprint() != variant.fingerprint()
    (tiny_folder / "student.2-steps.json").write_text('{"step": 2}')
    with pytest.raises(StudentError, match=r"student\.2-steps\.json: unknown key 'step'"):
        open_student(tiny_folder, variant="2-steps")


def test_a_variant_that_no_component_has(tiny_folder: Path) -> None:
    with pytest.raises(StudentError, match=r"--variant: no component has it .*got fp61"):
        open_student(tiny_folder, "fp61")


def test_a_variant_whose_file_is_damaged_is_not_called_absent(tiny_folder: Path) -> None:
    (tiny_folder / "transformer" / "diffusion_pytorch_model.2-steps.safetensors").write_bytes(b"cut off")
    with pytest.raises(StudentError, match="truncated or not a safetensors file") as caught:
        open_student(tiny_folder, "2-steps")
    assert "--variant" not in str(caught.value)


def test_a_component_can_be_left_out(tiny_folder: Path) -> None:
    for file in (tiny_folder / "text_encoder_3").iterdir():
        file.unlink()
    student = open_student(tiny_folder, without=("text_encoder_3",))
    assert not student.has_t5
    assert student.fingerprint().startswith("sha256:")


def test_licences_are_the_students_own(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not yours")
    (tiny_folder / "LICENSE").write_text("free")
    (tiny_folder / "LICENSE-2").symlink_to(tmp_path / "secret")
    assert open_student(tiny_folder).licences() == {"LICENSE": "free"}


@pytest.mark.parametrize("name", ["LICENSE:x", "LICENSE\n", "LICENSE\\x", "NOTICE\udcff"])
def test_licences_have_names_that_bundles_can_hold(name: str, tiny_folder: Path) -> None:
    (tiny_folder / name).write_text("free")
    with pytest.raises(StudentError, match=r"has a name that not every system can hold") as caught:
        open_student(tiny_folder).licences()
    str(caught.value).encode()  # and it can be printed


def test_a_licence_is_no_dump(tiny_folder: Path) -> None:
    with (tiny_folder / "LICENSE").open("wb") as stream:
        stream.truncate(1 << 21)
    with pytest.raises(StudentError, match=r"LICENSE: is too large for a licence \(expected at most 1048576 bytes, got 2097152"):
        open_student(tiny_folder).licences()


def test_file_names_of_any_bytes_have_a_fingerprint(tiny_folder: Path) -> None:
    before = open_student(tiny_folder).fingerprint()
    (tiny_folder / "tokenizer" / "x\udcff").write_text("x")
    assert open_student(tiny_folder).fingerprint() != before


BAD_TOKENIZERS = {
    "no length": ({"model_max_length": None}, r"tokenizer: model_max_length is missing or wrong \(expected 3 to 20"),
    "length as text": ({"model_max_length": "20"}, r"got '20'"),
    "a fraction": ({"model_max_length": 7.5}, r"got 7.5"),
    "beyond the positions": ({"model_max_length": 21}, r"expected 3 to 20, the positions of text_encoder, got 21"),
    "no padding": ({"pad_token": None}, r"tokenizer: has no pad_token"),
    "not a token": ({"eos_token": 5}, r"tokenizer: cannot be read"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_TOKENIZERS.values(), ids=BAD_TOKENIZERS)
def test_tokenizers_that_do_not_fit_are_refused(changes: dict[str, object], message: str, tiny_folder: Path) -> None:
    edit_json(tiny_folder / "tokenizer" / "tokenizer_config.json", **changes)
    with pytest.raises(StudentError, match=message):
        open_tokenizers(open_student(tiny_folder), keep_t5=True)


def test_tokens_beyond_the_vocabulary_are_refused(tiny_folder: Path) -> None:
    file = tiny_folder / "tokenizer_2" / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["model"]["vocab"]["beyond"] = 700
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(StudentError, match=r"tokenizer_2: has tokens .* \(expected ids below 700, .* got id 700\)"):
        open_tokenizers(open_student(tiny_folder), keep_t5=False)


@pytest.mark.parametrize(("damage", "message"), BAD_STUDENTS.values(), ids=BAD_STUDENTS)
def test_bad_students_are_refused(damage: Callable[[Path], None], message: str, tiny_folder: Path) -> None:
    damage(tiny_folder)
    with pytest.raises(StudentError, match=message):
        open_student(tiny_folder)


def test_all_complaints_come_at_once(tiny_folder: Path) -> None:
    rename(tiny_folder)
    pickled(tiny_folder)
    (tiny_folder / "tokenizer_2" / "tokenizer.json").unlink()
    with pytest.raises(StudentError) as caught:
        open_student(tiny_folder)
    assert len(caught.value.complaints) == 5


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.txt"])
def test_single_file_that_is_not_safetensors_is_not_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(StudentError, match=r"pickle|not a safetensors"):
        open_student(tmp_path / name)
