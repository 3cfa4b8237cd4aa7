"""The public few-step students of this family, as they are published: random numbers in their layouts, and their recipes.

Each is built from what its page says to download, with the options that its page's example comes to, and drawn beside that
example in diffusers; where diffusers has no pipeline for it (SwD's, SiD's), beside its authors' loop, written down here. What is
equal is equal to fp32's rounding through a few steps: over 100 dB seen, 90 asked for. A random student's pictures hardly depend
on much, so each is also drawn once without the option that makes it what it is, which must show.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from deploy.build import BuildRequest, build
from deploy.runtime.pipeline import Pipeline
from distillation.random_students import PRESETS, TINY_VAES, make_student
from exporters.choices import FormatName
from exporters.reference.decibels import psnr_db
from exporters.reference.diffusers import reference_component, reference_pipeline
from exporters.student.open import open_student
from exporters.student.student import Student
from exporters.student.weights.lora.source import Lora
from tests.helpers import lora_files as files
from tests.helpers.student_files import edit_json

PROMPT, SIDE, TOKENS = "a red circle left of a blue square on a white background", 64, 9
LATENTS = np.random.default_rng(5).standard_normal((1, 16, 8, 8), np.float32)
NOISE = np.random.default_rng(6).standard_normal((1, 8, 16, 8, 8), np.float32)


@dataclass(frozen=True)
class Published:
    """What is built, what draws beside it, and what it would be without its own.

    Attributes:
        options: of the build.
        draws: in diffusers, or as its authors do.
        other: options of a build that must draw something else.
        renoises: whether it draws noise anew.
    """

    options: Mapping[str, Any]
    draws: Callable[[], np.ndarray]
    other: Mapping[str, Any] = field(default_factory=dict)
    renoises: bool = False


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """SD3.5-Medium or SD3-Medium, which LoRAs are of."""
    return open_student(bare(make_student(replace(PRESETS["tiny"], t5=None), tmp_path_factory.mktemp("base") / "sd3.5-medium")))


def bare(folder: Path) -> Path:
    """As on a hub: nothing says how it wants to be run."""
    (folder / "student.json").unlink(missing_ok=True)
    edit_json(folder / "scheduler" / "scheduler_config.json", shift=3.0)
    return folder


def drawn(pipeline: Any, **options: Any) -> np.ndarray:
    given = {"height": SIDE, "width": SIDE, "max_sequence_length": TOKENS, "output_type": "np", "guidance_scale": 0.0}
    latents = {"latents": torch.from_numpy(LATENTS.copy())}
    return np.asarray(pipeline(PROMPT, **given | latents | options).images)


def with_lora(base: Student, file: Path, scale: float = 1.0) -> Any:
    pipeline = reference_pipeline(base, keep_t5=False)
    if file.is_dir():  # PEFT's own folder, as its pages open it
        from peft import PeftModel

        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, file)
        return pipeline
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=scale)
    return pipeline


def a_lora(base: Student, folder: Path) -> Path:
    return files.write(folder / "lora.safetensors", files.diffusers(files.products(base, "transformer")))


def a_peft_folder(base: Student, folder: Path) -> Path:
    return files.peft(folder / "peft", files.products(base, "transformer"))


def renoised(pipeline: Any, sigmas: list[float], sizes: list[int] | None = None) -> np.ndarray:
    """The authors' loop: the clean latents, enlarged where they grow, and noise anew; told 1000 times the level."""
    sizes = sizes or [LATENTS.shape[-1]] * (len(sigmas) - 1)
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(
            PROMPT, None, None, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        latents = torch.from_numpy(LATENTS[..., : sizes[0], : sizes[0]])
        for i, sigma in enumerate(sigmas[:-1]):
            told = torch.tensor([1000 * sigma], dtype=torch.float32)
            velocity = pipeline.transformer(latents, embeds, pooled, told, return_dict=False)[0]
            clean, following = latents - sigma * velocity, sizes[min(i + 1, len(sizes) - 1)]
            clean = torch.nn.functional.interpolate(clean, size=following)
            noise = torch.from_numpy(NOISE[:, i, :, :following, :following])
            latents = (1 - sigmas[i + 1]) * clean + sigmas[i + 1] * noise
        config = pipeline.vae.config
        picture = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    return (picture / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def tensorart_lora(base: Student, folder: Path) -> Published:
    """Guidance 1.5, shift 5."""
    file = a_lora(base, folder)
    pipeline = with_lora(base, file)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=5)
    wanted = {"student": base.path, "lora": (Lora(file),), "steps": 8, "guidance_scale": 1.5, "shift": 5.0}
    return Published(wanted, lambda: drawn(pipeline, num_inference_steps=8, guidance_scale=1.5), {"shift": None})


def tensorart_full(base: Student, folder: Path) -> Published:
    path = Path(shutil.copytree(base.path, folder / "sd3.5-medium-turbo"))
    (path / "README.md").write_text("pipe(prompt, num_inference_steps=8, guidance_scale=1.5)")
    pipeline = reference_pipeline(open_student(path), keep_t5=False)
    wanted = {"student": path, "steps": 8, "guidance_scale": 1.5}
    return Published(wanted, lambda: drawn(pipeline, num_inference_steps=8, guidance_scale=1.5), {"steps": 7})


def hyper(base: Student, folder: Path) -> Published:
    file = a_lora(base, folder)
    pipeline = with_lora(base, file, 0.125)
    wanted = {"student": base.path, "lora": (Lora(file, 0.125),), "steps": 8, "guidance_scale": 5.0}
    return Published(wanted, lambda: drawn(pipeline, num_inference_steps=8, guidance_scale=5.0), {"lora": (Lora(file),)})


def flash(base: Student, folder: Path) -> Published:
    """Its scheduler re-noises; the grid is diffusers' own."""
    file = a_peft_folder(base, folder)
    pipeline = with_lora(base, file)
    pipeline.scheduler.set_timesteps(4)
    sigmas = pipeline.scheduler.sigmas.tolist()
    wanted = {"student": base.path, "lora": (Lora(file),), "steps": 4, "sampler": "renoise"}
    return Published(wanted, lambda: renoised(pipeline, sigmas), {"lora": ()}, renoises=True)


def tdm(base: Student, folder: Path) -> Published:
    """A LoRA at an eighth, a small VAE whose shift is none, and a multistep solver."""
    file = a_lora(base, folder)
    shape = replace(PRESETS["tiny"], t5=None, tiny_vae=TINY_VAES["tiny"])
    taesd = open_student(make_student(shape, folder / "taesd"))
    edit_json(taesd.path / "vae" / "config.json", shift_factor=0.0)
    pipeline = with_lora(base, file, 0.125)
    vae = reference_component(open_student(taesd.path), "vae")
    assert isinstance(vae, AutoencoderTiny)
    pipeline.vae = vae
    pipeline.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=6)
    wanted = {
        "student": base.path, "lora": (Lora(file, 0.125),), "components": {"vae": taesd.path / "vae"}, "steps": 4,
        "sampler": "dpmpp", "shift": 6.0,
    }  # fmt: skip
    return Published(wanted, lambda: drawn(pipeline, num_inference_steps=4, guidance_scale=1.0), {"shift": 1.0})


def swd(base: Student, folder: Path) -> Published:
    file, sigmas = a_peft_folder(base, folder), [1.0, 0.9454, 0.7904, 0.6022, 0.0]
    pipeline = with_lora(base, file)
    wanted = {
        "student": base.path,
        "lora": (Lora(file),),
        "sigmas_after_shift": tuple(sigmas),
        "scales": (32.0, 64.0, 96.0, 128.0),
    }
    other = {"upscale_mode": "bicubic"}
    return Published(wanted, lambda: renoised(pipeline, sigmas, [2, 4, 6, 8]), other, renoises=True)


def large_turbo(base: Student, folder: Path) -> Published:
    """No dual attention, and bfloat16 as it is stored; few layers for its thirty-eight."""
    path = bare(
        make_student(
            replace(PRESETS["tiny"], t5=None, dtype="bf16", dual_layers=0, heads=1, head_dim=64), folder / "sd3.5-large-turbo"
        )
    )
    student = open_student(path)
    pipeline = reference_pipeline(student, keep_t5=False)
    wanted = {"student": path, "steps": 4}
    return Published(wanted, lambda: drawn(pipeline, num_inference_steps=4), {"steps": 3})


def byliutao(base: Student, folder: Path) -> Published:
    pipeline = reference_pipeline(base, keep_t5=False)
    sigmas = (1.0, 0.75, 0.5, 0.25)
    wanted = {"student": base.path, "sigmas": sigmas, "guidance_scale": 1.0}
    return Published(wanted, lambda: drawn(pipeline, sigmas=[*sigmas], guidance_scale=1.0), {"sigmas": (1.0, 0.5)})


def sid(base: Student, folder: Path) -> Published:
    """Its own pipeline's name says it; built with no option at all."""
    path = Path(shutil.copytree(base.path, folder / "SiD-DiT"))
    edit_json(path / "model_index.json", _class_name="SiDSD3Pipeline")
    pipeline = reference_pipeline(base, keep_t5=False)
    return Published(
        {"student": path}, lambda: renoised(pipeline, [1.0, 0.75, 0.5, 0.25, 0.0]), {"sigmas": (1.0, 0.5)}, renoises=True
    )


STUDENTS: dict[str, Callable[[Student, Path], Published]] = {
    "tensorart's LoRA": tensorart_lora,
    "tensorart's turbo": tensorart_full,
    "Hyper-SD3": hyper,
    "flash-sd3": flash,
    "TDM-SD3": tdm,
    "SwD": swd,
    "SD3.5-Large-Turbo": large_turbo,
    "byliutao's turbo": byliutao,
    "SiD-DiT": sid,
}


TIERS: dict[FormatName, str] = {"onnx": "desktop-gpu-24gb", "coreml": "laptop-apple"}
ALL = [(make, form) for make in STUDENTS for form in TIERS]


def built(output: Path, form: FormatName, options: Mapping[str, Any]) -> Pipeline:
    same: dict[str, Any] = {
        "tier": TIERS[form], "format": form, "precision": "fp32", "height": SIDE, "width": SIDE, "keep_t5": False,
        "max_sequence_length": TOKENS, "parity": "never",
    }  # fmt: skip
    return Pipeline(build(BuildRequest(output=output, **same | options)))


@pytest.mark.parametrize(("name", "form"), ALL)
def test_it_draws_what_its_own_recipe_draws(name: str, form: FormatName, base: Student, tmp_path: Path) -> None:
    published = STUDENTS[name](base, tmp_path)
    pipeline = built(tmp_path / "bundle", form, published.options)
    steps = len(pipeline.manifest.sampling.timesteps)
    noise = {"step_noise": NOISE[:, :steps]} if published.renoises else {}
    got = pipeline.generate(PROMPT, latents=LATENTS, **noise)
    expected = published.draws()
    assert expected.shape == got.shape == (1, SIDE, SIDE, 3)
    assert psnr_db(expected, got) >= 90
    other = built(tmp_path / "other", form, {**published.options, **published.other})
    steps = len(other.manifest.sampling.timesteps)
    noise = {"step_noise": NOISE[:, :steps]} if published.renoises else {}
    assert psnr_db(expected, other.generate(PROMPT, latents=LATENTS, **noise)) < 80
