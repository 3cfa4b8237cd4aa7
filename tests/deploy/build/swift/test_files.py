"""Bundles for Apple's Swift client: its contract, written down here once more; its tokenizer and scheduler, played in Python."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="coremltools is not installed (flash-deploy[coreml])")

from deploy.build import BuildRequest, build
from deploy.build.swift.tokenizers import check_client_tokenizers
from deploy.build.verify import verify
from deploy.bundle.folder import Bundle
from deploy.bundle.inspect import inspect_bundle, render
from deploy.errors import InputError
from deploy.runtime.pipeline import Pipeline
from exporters.choices import PROMPTS
from exporters.coreml.backend import ct
from exporters.reference.decibels import psnr_db
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT, Student
from exporters.student.tokenizers import load_tokenizer
from tests.helpers.student_files import edit_json

# TextEncoderXL.swift, TextEncoderT5.swift, MultiModalDiffusionTransformer.swift, Decoder.swift; sizes are the built-in student's:
# 16 CLIP tokens, 64 and 96 channels, joint width 160, pictures of 64 px. 77 is the client's own.
CONTRACT: dict[str, tuple[dict[str, list[int]], dict[str, list[int]]]] = {
    "TextEncoder": ({"input_ids": [1, 16]}, {"hidden_embeds": [1, 16, 64], "pooled_outputs": [1, 64]}),
    "TextEncoder2": ({"input_ids": [1, 16]}, {"hidden_embeds": [1, 16, 96], "pooled_outputs": [1, 96]}),
    "TextEncoderT5": ({"input_ids": [1, 77], "attention_mask": [1, 77]}, {"encoder_hidden_states": [1, 160, 1, 77]}),
    "MultiModalDiffusionTransformer": (
        {
            "latent_image_embeddings": [2, 16, 8, 8],
            "timestep": [2],
            "token_level_text_embeddings": [2, 160, 1, 16 + 77],
            "pooled_text_embeddings": [2, 160, 1, 1],
        },
        {"denoiser_output": [2, 16, 8, 8]},
    ),
    "VAEDecoder": ({"z": [1, 16, 8, 8]}, {"image": [1, 3, 64, 64]}),
}
TOKENIZER_FILES = ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
FLOAT32 = 65568  # Core ML's FeatureTypes.proto


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With T5, on the oldest system that the client runs on."""
    return build(swift(tmp_path_factory.mktemp("swift") / "bundle", keep_t5=True, system="iOS17"))


def swift(output: Path, **changes: Any) -> BuildRequest:
    wanted = {"tier": "laptop-apple", "format": "coreml", "layout": "swift", "precision": "fp16", "parity": "never", **changes}
    return BuildRequest(output=output, **wanted)


def test_programs_are_what_the_client_asks_for(bundle: Bundle) -> None:
    assert {path.stem for path in bundle.folder.glob("*.mlpackage")} == CONTRACT.keys()
    for name, sides in CONTRACT.items():
        spec = ct.models.MLModel(str(bundle.folder / f"{name}.mlpackage"), skip_model_load=True).get_spec()
        assert spec.specificationVersion == 8  # iOS 17 / macOS 14: what the client itself needs
        for ports, expected in zip((spec.description.input, spec.description.output), sides, strict=True):
            assert {port.name: list(port.type.multiArrayType.shape) for port in ports} == expected, name
            assert {port.type.multiArrayType.dataType for port in ports} == {FLOAT32}
            assert all(port.shortDescription for port in ports)
        told = spec.description.metadata
        assert told.shortDescription.endswith("; of builtin_student, a text-to-image student of the Stable Diffusion 3 family")
        assert told.license == "the student names none"
        facts = {name.removeprefix("flash-deploy."): fact for name, fact in told.userDefined.items() if "flash-deploy" in name}
        assert facts.keys() == {"student", "tier", "picture", "sampler", "sigmas", "guidance", "profile", "t5"}
        assert (facts["student"], facts["picture"], facts["t5"]) == ("builtin_student", "64 x 64 px", "kept")
        assert facts["sigmas"] == "1, 0.9, 0.75, 0.5, 0"


def test_pictures_are_diffusers(bundle: Bundle) -> None:
    """By the student's own schedule; 64 dB for graphs, 54 for the transformer and 75 for pictures seen."""
    report = verify(bundle.folder, BUILTIN_STUDENT)
    assert not report.complaints
    assert report.graph_db.keys() == {"text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae_decoder"}
    assert min(report.graph_db.values()) >= 45
    assert len(report.picture_db) == len(PROMPTS)


def client_tokens(vocabulary: dict[str, int], merges: list[str], text: str, length: int, pad: str) -> list[int]:
    """``BPETokenizer.swift`` and what ``TextEncoderXL`` makes of it: words at spaces, the earliest merge first."""
    ranks = {tuple(line.split(" ")): i for i, line in enumerate(merges) if line and not line.startswith("#")}
    tokens = ["<|startoftext|>"]
    for word in text.strip().lower().split(" "):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
            first, second = min(pairs, key=ranks.__getitem__)
            i = next(i for i in range(len(parts)) if parts[i : i + 2] == [first, second])
            parts[i : i + 2] = [first + second]
        tokens += parts
    tokens.append("<|endoftext|>")
    tokens += [pad] * (length - len(tokens))
    return [vocabulary.get(token, vocabulary["<|endoftext|>"]) for token in tokens]


def test_the_clients_tokenizer_reads_the_bundles_files(bundle: Bundle) -> None:
    vocabulary = json.loads((bundle.folder / "vocab.json").read_text("utf-8"))
    merges = (bundle.folder / "merges.txt").read_text("utf-8").split("\n")
    student = open_student(BUILTIN_STUDENT)
    for component, pad in (("text_encoder", "<|endoftext|>"), ("text_encoder_2", "!")):
        tokenizer = load_tokenizer(student, component)
        for prompt in (*PROMPTS, "three grey stars"):
            expected = tokenizer(prompt, padding="max_length", max_length=16)["input_ids"]
            assert client_tokens(vocabulary, merges, prompt, 16, pad) == expected
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((bundle.folder / name).read_text("utf-8"))


def client_picture(
    pipeline: Pipeline,
    prompt: str,
    latents: np.ndarray,
    steps: int,
    shift: float,
    negative: str | None = None,
    scale: float = 7.5,
) -> np.ndarray:
    """``StableDiffusion3Pipeline.generateImages`` with ``DiscreteFlowScheduler``: the picture is of the last step's forecast.

    The scale is the client's own default; without a negative prompt, its half of what is computed are zeros.
    """

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return shift * sigma / (1 + (shift - 1) * sigma)

    training = shifted(np.linspace(1, 1000, 1000) / 1000)
    sigmas = shifted(np.linspace(training[0], training[-1], steps)[::-1]).tolist()
    stages = pipeline._stages
    (text, pooled), (other_text, other_pooled) = stages.conditions([pipeline.tokenize(one) for one in (prompt, negative or "")])
    kept = float(negative is not None)
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        inputs = {
            "latent_image_embeddings": np.concatenate([latents, latents]),
            "timestep": np.full(2, 1000 * sigma, np.float32),
            "token_level_text_embeddings": np.concatenate([text, kept * other_text]).astype(np.float32),
            "pooled_text_embeddings": np.concatenate([pooled, kept * other_pooled]).reshape(2, -1, 1, 1).astype(np.float32),
        }
        [halves] = pipeline.run("transformer", inputs)
        velocity = halves[1:] + np.float32(scale) * (halves[:1] - halves[1:])
        forecast = latents - np.float32(sigma) * velocity
        latents = latents + np.float32(following - sigma) * velocity
    return stages.decode(forecast).transpose(0, 2, 3, 1)


def client_told(bundle: Bundle) -> dict[str, float]:
    """What the bundle's README has the client told."""
    readme = (bundle.folder / "README.md").read_text("utf-8")
    return {name: float(value) for name, value in re.findall(r"picture\.(\w+) = ([\d.-]+)", readme)}


def test_the_client_draws_the_students_picture(bundle: Bundle) -> None:
    """The same bytes seen, in fp16: 60 dB leave room for another rounding. With any other numbers it draws noise: 7 to 16 dB."""
    told = client_told(bundle)
    steps, shift = int(told["stepCount"]), told["schedulerTimestepShift"]
    assert steps == len(bundle.manifest.sampling.timesteps) == 4
    assert told["decoderScaleFactor"] == pytest.approx(bundle.manifest.picture.scaling_factor)
    assert told["decoderShiftFactor"] == pytest.approx(bundle.manifest.picture.shift_factor)
    pipeline = Pipeline(bundle, runtime="evaluator", keep_graphs=True)
    latents = np.random.default_rng(0).standard_normal((1, 16, 8, 8), np.float32)
    wanted = pipeline.generate(PROMPTS[0], latents=latents)
    assert psnr_db(wanted, client_picture(pipeline, PROMPTS[0], latents, steps, shift)) >= 60
    for others in ((steps + 1, shift), (2 * steps - 1, shift), (50, shift), (steps, shift + 1)):
        assert psnr_db(wanted, client_picture(pipeline, PROMPTS[0], latents, *others)) < 20, others


@pytest.mark.parametrize("changes", [{"sigmas": (1.0, 0.99, 0.2)}, {"steps": 1}], ids=["far from any of its grids", "one step"])
def test_the_client_follows_any_schedule(changes: dict[str, Any], tmp_path: Path) -> None:
    """131 and 142 dB seen: what fp32 rounds."""
    bundle = build(swift(tmp_path / "b", keep_t5=False, precision="fp32", **changes))
    told, pipeline = client_told(bundle), Pipeline(bundle, runtime="evaluator", keep_graphs=True)
    latents = np.random.default_rng(0).standard_normal((1, 16, 8, 8), np.float32)
    drawn = client_picture(pipeline, PROMPTS[0], latents, int(told["stepCount"]), told["schedulerTimestepShift"])
    assert psnr_db(pipeline.generate(PROMPTS[0], latents=latents), drawn) >= 100


def test_the_client_guides(tmp_path: Path) -> None:
    """Both halves are computed, each as diffusers does."""
    wanted = {"guidance_scale": 4.5, "negative_prompt": 'a green "triangle"', "variant": "teacher", "steps": 3}
    bundle = build(swift(tmp_path / "b", keep_t5=False, precision="fp32", **wanted))
    report = verify(bundle.folder, BUILTIN_STUDENT, "teacher")
    assert not report.complaints
    told, pipeline = client_told(bundle), Pipeline(bundle, runtime="evaluator", keep_graphs=True)
    assert told["guidanceScale"] == 4.5
    assert 'picture.negativePrompt = "a green \\"triangle\\""' in (bundle.folder / "README.md").read_text("utf-8")
    latents = np.random.default_rng(0).standard_normal((1, 16, 8, 8), np.float32)
    schedule = int(told["stepCount"]), told["schedulerTimestepShift"]
    drawn = client_picture(pipeline, PROMPTS[0], latents, *schedule, negative='a green "triangle"', scale=4.5)
    own = pipeline.generate(PROMPTS[0], latents=latents)
    assert psnr_db(own, drawn) >= 100
    assert psnr_db(own, pipeline.generate(PROMPTS[0], latents=latents, negative_prompt="")) < 40


def test_the_client_cannot_guide_some_steps_alone(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--guidance-interval: the Swift client guides all steps alike"):
        build(swift(tmp_path / "b", guidance_scale=2.0, guidance_interval=(0.2, 0.9)))
    with pytest.raises(InputError, match="this bundle's transformer computes without guidance"):
        Pipeline(bundle, runtime="evaluator").generate(PROMPTS[0], guidance_scale=2.0)


def test_each_of_several_prompts_is_encoded_as_if_alone(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle, runtime="evaluator", keep_graphs=True)
    ids = [pipeline.tokenize(prompt) for prompt in PROMPTS[:2]]
    together = pipeline._stages.conditions(ids)
    for one, condition in zip(ids, together, strict=True):
        [alone] = pipeline._stages.conditions([one])
        assert all(np.array_equal(a, b) for a, b in zip(alone, condition, strict=True))
    assert not np.array_equal(together[0][0], together[1][0])


def test_the_script_compiles_and_copies_all(bundle: Bundle, tmp_path: Path) -> None:
    """With a ``xcrun`` that only notes what it is asked: the compiler itself is on macOS."""
    tool = tmp_path / "bin" / "xcrun"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\n[ "$1" = --find ] || mkdir "$4/$(basename "$3" .mlpackage).mlmodelc"\n')
    tool.chmod(0o755)
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    script = ["sh", str(bundle.folder / "compile.sh")]
    subprocess.run([*script, "Resources"], check=True, cwd=tmp_path, env={"PATH": path}, capture_output=True)
    names = sorted(file.name for file in (tmp_path / "Resources").iterdir())
    assert names == sorted([*(f"{name}.mlmodelc" for name in CONTRACT), *TOKENIZER_FILES])
    assert subprocess.run(script, check=False, env={"PATH": path}, capture_output=True).returncode == 2


def test_without_t5_the_client_finds_none(tmp_path: Path, students: dict[str, Student]) -> None:
    """The client takes T5 where its three files are; without them it feeds 77 zero tokens, which are folded to one."""
    folder = shutil.copytree(BUILTIN_STUDENT, tmp_path / "student")
    edit_json(folder / "student.json", sigmas=None)  # diffusers' own grid, which is the client's formula
    student = open_student(folder)
    bundle = build(swift(tmp_path / "b", student=student.path))
    assert not {"tokenizer.json", "tokenizer_config.json", "TextEncoderT5.mlpackage"} & {
        file.name for file in bundle.folder.iterdir()
    }
    assert bundle.manifest.compute_units == "cpu-and-gpu"
    readme = (bundle.folder / "README.md").read_text("utf-8")
    assert "cpuAndGPU" in readme
    assert "picture.stepCount = 4\npicture.schedulerTimestepShift = 3\n" in readme
    schedule = bundle.manifest.client_schedule
    assert schedule is not None
    assert (schedule.steps, schedule.shift) == (4, 3.0)
    assert schedule.scales == pytest.approx([1.0] * 4, abs=1e-4)
    assert "stepCount 4, schedulerTimestepShift 3\n" in render(inspect_bundle(bundle.folder))
    assert verify(bundle.folder, student.path).complaints == []


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ONNX": ({"format": "onnx", "tier": "desktop-cpu"}, "--layout: is a layout of Core ML bundles"),
    "stages": ({"stages": 2}, "--stages: the Swift client has one transformer"),
    "dynamic": ({"dynamic": True}, "--dynamic"),
    "more steps than the client tells apart": ({"steps": 400}, "steps: the Swift client's levels lie too close"),
    "renoise": ({"sampler": "renoise"}, "makes Euler steps alone"),
    "more T5 tokens than the client takes": ({"max_sequence_length": 128}, "max_sequence_length: the Swift client has its own"),
    "a scheme in blocks on iOS 17": ({"precision": None, "system": "iOS17", "profile": "int4g32"}, "iOS 17"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_client_cannot_take_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "profile" in changes:
        profile = tmp_path / "profile.toml"
        profile.write_text(f'[[rule]]\ncomponent = "*"\nweights = "*"\nscheme = "{changes["profile"]}"\n')
        changes = {**changes, "profile": profile}
    with pytest.raises(InputError, match=message):
        build(swift(tmp_path / "b", **changes))
    assert not (tmp_path / "b").exists()


def test_tokenizers_that_the_client_does_not_have_are_refused() -> None:
    student = open_student(BUILTIN_STUDENT)
    clips = tuple(
        (name, "", load_tokenizer(student, component))
        for name, component in (("input_ids", "text_encoder"), ("input_ids_2", "text_encoder_2"))
    )
    check_client_tokenizers(clips)
    clips[1][2].pad_token = "<|endoftext|>"
    with pytest.raises(InputError, match="input_ids_2: the Swift client takes '!'"):
        check_client_tokenizers(clips)
