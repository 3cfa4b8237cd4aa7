"""Pictures drawn upon others against diffusers' own pipelines, as a user calls them: their seeds too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline
from PIL import Image

from deploy.build import BuildRequest, build
from deploy.bundle.folder import Bundle
from deploy.errors import InputError
from deploy.runtime.pictures import load_image
from deploy.runtime.pipeline import Pipeline
from exporters.image_to_image import first_step
from exporters.reference.decibels import psnr_db
from exporters.reference.diffusers import reference_pipeline
from exporters.student.open import open_student
from exporters.student.student import Student

PROMPT = "a red circle left of a blue square on a white background"
SIGMAS = (1.0, 0.75, 0.5, 0.25)


def photo() -> Image.Image:
    """Of another size and aspect than what is drawn, with edges."""
    rows, columns = np.mgrid[0:90, 0:70].astype(np.float32)
    waves = [np.sin(rows / 7 + columns / 11), np.cos(columns / 5), np.sign(np.sin(rows / 13) * np.cos(columns / 17))]
    return Image.fromarray(np.uint8(255 * (0.5 + 0.45 * np.stack(waves, -1))))


def half_mask() -> Image.Image:
    """White on its left, where it is drawn anew; of yet another size."""
    mask = np.zeros((50, 100), np.uint8)
    mask[:, :60] = 255
    return Image.fromarray(mask)


def built(student: Path | None, folder: Path, **options: Any) -> Pipeline:
    given = {} if student is None else {"student": student}
    request = {"precision": "fp32", "keep_t5": False, "sigmas": SIGMAS, "height": 64, "width": 64, "parity": "never"}
    return Pipeline(build(BuildRequest(output=folder / "b", **given, **request | {"max_sequence_length": 24} | options)))


@pytest.fixture(scope="module")
def student() -> Any:
    return reference_pipeline(open_student(), keep_t5=False).components


@pytest.fixture(scope="module", params=["native", "optimum"])
def pipeline(request: pytest.FixtureRequest, upon_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    if request.param == "native":
        return Pipeline(upon_bundle)
    return built(None, tmp_path_factory.mktemp("upon"), layout="optimum")


def drawn(components: Any, strength: float, seed: int, mask: Image.Image | None = None, **options: Any) -> np.ndarray:
    """What diffusers draws; of its inpainting the latents, for it forgets the VAE's shift when it decodes them (0.42)."""
    kind = StableDiffusion3Img2ImgPipeline if mask is None else StableDiffusion3InpaintPipeline
    reference: Any = kind(**components)
    reference.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {
        "image": photo(),
        "height": 64,
        "width": 64,
        "sigmas": list(SIGMAS),
        "max_sequence_length": 24,
        "guidance_scale": 1.0,
        "strength": strength,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
    }
    if mask is None:
        return np.asarray(reference(PROMPT, **given | options).images)
    latents = reference(PROMPT, mask_image=mask, **given | options | {"output_type": "latent"}).images
    vae = reference.vae
    decoded = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
    return (decoded / 2 + 0.5).clamp(0, 1).numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_drawn_upon_as_by_diffusers(strength: float, pipeline: Pipeline, student: Any) -> None:
    expected = drawn(student, strength, 7)
    got = pipeline.generate(PROMPT, seed=7, noise="torch", image=photo(), strength=strength)
    assert psnr_db(expected, got) >= 80  # 100 dB and more were seen
    another = pipeline.generate(PROMPT, seed=8, noise="torch", image=photo(), strength=strength)
    assert psnr_db(expected, another) < 50  # the comparison can fail


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_masked_as_by_diffusers(strength: float, pipeline: Pipeline, student: Any) -> None:
    expected = drawn(student, strength, 7, half_mask())
    seen: list[np.ndarray] = []
    options: dict[str, Any] = {"image": photo(), "strength": strength, "previews": lambda step, steps, shown: seen.append(shown)}
    got = pipeline.generate(PROMPT, seed=7, noise="torch", mask=half_mask(), **options)
    assert psnr_db(expected, got) >= 80
    assert np.array_equal(seen[-1], got[0])
    anew, kept = (psnr_db(got[0][:, columns], seen[0][:, columns]) for columns in (slice(0, 16), slice(48, None)))
    assert kept > anew + 6 or strength == 1  # from noise alone, the VAE's norms carry what is drawn into what stays
    unmasked = pipeline.generate(PROMPT, seed=7, noise="torch", image=photo(), strength=strength)
    assert psnr_db(expected, unmasked) < 40
    inverted = Image.fromarray(255 - np.asarray(half_mask()))
    assert psnr_db(expected, pipeline.generate(PROMPT, seed=7, noise="torch", image=photo(), mask=inverted)) < 40


def test_guided_as_by_diffusers(pipeline: Pipeline, student: Any) -> None:
    expected = drawn(student, 0.6, 3, guidance_scale=3.0, negative_prompt="a green star")
    options: dict[str, Any] = {"seed": 3, "noise": "torch", "image": photo()}
    got = pipeline.generate(PROMPT, guidance_scale=3.0, negative_prompt="a green star", **options)
    assert psnr_db(expected, got) >= 80
    assert psnr_db(expected, pipeline.generate(PROMPT, **options)) < 40


def test_a_vae_without_a_law_draws_no_noise_for_it(students: dict[str, Student], tmp_path: Path) -> None:
    """An ``AutoencoderTiny`` says latents and not their law: the seed's first numbers are the steps' noise."""
    tiny = students["tiny decoder"]
    pipeline = built(tiny.path, tmp_path, vae_encoder=True)
    expected = drawn(reference_pipeline(tiny, keep_t5=False).components, 0.6, 7)
    got = pipeline.generate(PROMPT, seed=7, noise="torch", image=photo())
    assert psnr_db(expected, got) >= 80
    assert psnr_db(expected, pipeline.generate(PROMPT, seed=7, noise="torch")) < 60


def test_several_pictures_are_each_their_own(pipeline: Pipeline) -> None:
    options: dict[str, Any] = {"image": photo(), "strength": 0.5}
    several = pipeline.generate([PROMPT, "a green star"], seed=4, num_images=2, **options)
    alone = pipeline.generate("a green star", seed=4, num_images=2, **options)
    assert psnr_db(alone, several[2:]) >= 100
    assert psnr_db(several[0], several[1]) < 50
    sized = np.asarray(photo().resize((64, 64), Image.Resampling.LANCZOS), np.float32) / 255
    assert np.array_equal(several[2:], pipeline.generate("a green star", seed=4, num_images=2, image=sized, strength=0.5))
    steps: list[tuple[int, int]] = []
    pipeline.generate(PROMPT, callback=lambda step, count, _: steps.append((step, count)), **options)
    assert steps == [(0, 2), (1, 2)]


def test_renoised_steps_begin_in_the_middle_too(builtin_upon: Pipeline) -> None:
    """What a mask keeps is the same after each step and each seed; what it does not keep is not."""
    pipeline = builtin_upon
    kept = [pipeline.generate(PROMPT, seed=seed, image=photo(), strength=0.5, mask=half_mask()) for seed in (1, 2)]
    right, left = ([picture[:, :, side] for picture in kept] for side in (slice(56, 64), slice(0, 24)))
    assert psnr_db(*right) > psnr_db(*left) + 6
    assert np.isfinite(kept).all()


@pytest.fixture(scope="module")
def builtin_upon(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return built(None, tmp_path_factory.mktemp("renoise"), vae_encoder=True, sampler="renoise")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "--strength: does nothing without --image"),
        ({"mask": half_mask()}, "--mask: does nothing without --image"),
        ({"image": photo(), "strength": 1.5}, r"--strength: wrong \(expected a number from 0 to 1, got 1.5\)"),
        ({"image": photo(), "strength": float("nan")}, r"--strength: wrong \(expected a number from 0 to 1, got nan\)"),
        ({"image": photo(), "strength": 0}, r"--strength: leaves no step to be made \(expected more than 0, got 0\)"),
        ({"image": "photo.png"}, r"--image: is no picture \(expected one of Pillow, or an array, got str\)"),
        (
            {"image": np.zeros((8, 8, 3))},
            r"--image: wrong shape \(expected a picture of Pillow, or \[64, 64, 3\], got \[8, 8, 3\]\)",
        ),
        (
            {"image": np.full((64, 64, 3), 2.0)},
            r"--image: is out of range \(expected floats in \[0, 1\], got float64, 2.0 to 2.0\)",
        ),
        ({"image": np.full((64, 64, 3), np.nan)}, "--image: is out of range"),
        ({"image": np.zeros((64, 64, 3), bool)}, r"--image: is out of range \(expected floats in \[0, 1\], got bool\)"),
        ({"image": photo(), "mask": np.zeros((64, 60))}, r"--mask: wrong shape \(expected a picture of Pillow, or \[64, 64, 1\]"),
        ({"image": photo(), "mask": Image.new("I;16", (8, 8))}, "--mask: has more than 8 bits a channel"),
    ],
)
def test_what_cannot_be_drawn_upon(options: dict[str, Any], message: str, builtin_upon: Pipeline) -> None:
    with pytest.raises(InputError, match=message):
        builtin_upon.generate(PROMPT, **options)


def test_bundles_that_cannot(builtin_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the bundle has no VAE encoder\nWhat to do: build it with --vae-encoder"):
        Pipeline(builtin_bundle).generate(PROMPT, image=photo())
    for options, why in (
        ({"sampler": "dpmpp"}, "steps of DPM-Solver"),
        ({"sampler": "renoise", "scales": (4.0, 8.0), "sigmas": (1.0, 0.5)}, "latents that grow"),
    ):
        with pytest.raises(InputError, match=f"--vae-encoder: {why}"):
            built(None, tmp_path, vae_encoder=True, **options)
    with pytest.raises(InputError, match="--vae-encoder: the Swift client takes an encoder of 4 latent channels alone"):
        built(None, tmp_path, vae_encoder=True, layout="swift", format="coreml", tier="laptop-apple")


def test_first_steps_are_diffusers(student: Any) -> None:
    pipeline: Any = StableDiffusion3Img2ImgPipeline(**student)
    for steps in (1, 2, 3, 4, 7, 28):
        pipeline.scheduler.set_timesteps(steps)
        for strength in np.linspace(0, 1, 23).tolist():
            timesteps, left = pipeline.get_timesteps(steps, strength, "cpu")
            assert (len(timesteps), left) == (steps - first_step(strength, steps),) * 2


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    photo().save(turned, exif=exif)
    assert load_image(turned, "--image").size == photo().size[::-1]
    text = tmp_path / "photo.png"
    text.write_text("no picture")
    for file in (text, tmp_path / "missing.png", tmp_path):
        with pytest.raises(InputError, match=rf"The picture cannot be drawn upon\.\n  - --image {file}: .*PNG, JPEG or WebP"):
            load_image(file, "--image")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(turned.read_bytes()[:-700])
    with pytest.raises(InputError, match=r"--image .*cut.jpg: "):
        load_image(cut, "--image")
