"""Pictures whose latents grow from step to step, against diffusers' own scheduler of such students."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import FlowMatchLCMScheduler

from deploy.build import BuildRequest, build
from deploy.build.plan import plan
from deploy.build.verify import verify
from deploy.bundle.folder import Bundle
from deploy.bundle.manifest import parse_manifest
from deploy.errors import InputError
from deploy.forecast.predict import costs, predictions
from deploy.forecast.show import render
from deploy.runtime.pipeline import Pipeline
from exporters.reference.decibels import psnr_db
from exporters.reference.diffusers import reference_pipeline
from exporters.student.student import Student
from tests.helpers.student_files import edit_json

PROMPT = "a red circle left of a blue square on a white background"
SIGMAS, SCALES = (1.0, 0.9454, 0.7904, 0.6022), (32, 64, 96, 128)  # as SwD's students of four steps are published
SIZES = [(2, 4), (4, 8), (6, 12), (8, 16)]  # of a picture of 64 x 128 px


def request(student: Student | Path, output: Path, **changes: Any) -> BuildRequest:
    path = student.path if isinstance(student, Student) else student
    wanted: dict[str, Any] = {
        "sigmas_after_shift": (*SIGMAS, 0.0), "scales": SCALES, "height": 64, "width": 128, "keep_t5": False,
        "precision": "fp32", "max_sequence_length": 9, "parity": "never", **changes,
    }  # fmt: skip
    return BuildRequest(output=output, student=path, **wanted)


@pytest.fixture(scope="module", params=["nearest", "bicubic"])
def bundle(request: pytest.FixtureRequest, students: dict[str, Student], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("scales") / "b"
    return build(globals()["request"](students["tiny"], folder, upscale_mode=request.param))


def drawn_by_diffusers(student: Student, mode: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The picture, its first latents, and what the scheduler draws from torch's own generator, at the picture's size."""
    pipeline = reference_pipeline(student, keep_t5=False)
    scheduler: Any = FlowMatchLCMScheduler(scale_factors=[s / SCALES[0] for s in SCALES[1:]], upscale_mode=mode, shift=1.0)  # type: ignore[arg-type]
    pipeline.scheduler = scheduler
    torch.manual_seed(seed)
    latents = torch.randn(1, 16, *SIZES[0])
    state = torch.get_rng_state()
    noise = np.zeros((1, 4, 16, *SIZES[-1]), np.float32)
    for step, (rows, columns) in enumerate([*SIZES[1:], SIZES[-1]]):
        noise[0, step, :, :rows, :columns] = torch.randn(1, 16, rows, columns).numpy()[0]
    torch.set_rng_state(state)
    picture = pipeline(
        PROMPT, height=8 * SIZES[0][0], width=8 * SIZES[0][1], sigmas=[*SIGMAS], guidance_scale=1.0, latents=latents,
        max_sequence_length=9, output_type="np",
    ).images  # fmt: skip
    return np.asarray(picture), latents.numpy(), noise


def test_pictures_are_diffusers(bundle: Bundle, students: dict[str, Student]) -> None:
    mode = bundle.manifest.sampling.upscale_mode
    expected, latents, noise = drawn_by_diffusers(students["tiny"], mode, 3)
    assert expected.shape == (1, 64, 128, 3)
    got = Pipeline(bundle).generate(PROMPT, latents=latents, step_noise=noise)
    assert psnr_db(expected, got) >= 50
    larger = np.random.default_rng(0).standard_normal((1, 16, 8, 16), np.float32)
    larger[..., :2, :4] = latents
    assert np.array_equal(Pipeline(bundle).generate(PROMPT, latents=larger, step_noise=noise), got)  # cut to the first step's
    other, *_ = drawn_by_diffusers(students["tiny"], "bilinear", 3)
    assert psnr_db(other, got) < 45  # the comparison can fail


def test_a_seed_draws_in_diffusers_order(bundle: Bundle, students: dict[str, Student]) -> None:
    """First latents, then each step's noise, from one generator, each of its own size."""
    _, latents, noise = drawn_by_diffusers(students["tiny"], "nearest", 11)
    pipeline = Pipeline(bundle)
    by_seed = pipeline.generate(PROMPT, seed=11, noise="torch")
    np.testing.assert_allclose(by_seed, pipeline.generate(PROMPT, latents=latents, step_noise=noise), rtol=0, atol=1e-4)


def test_verify_draws_so_too(bundle: Bundle, students: dict[str, Student]) -> None:
    report = verify(bundle.folder, students["tiny"].path)
    assert not report.complaints
    assert min(report.picture_db.values()) >= 50


def test_another_size_of_the_same_bundle(bundle: Bundle) -> None:
    assert Pipeline(bundle).generate(PROMPT, height=128, width=64).shape == (1, 128, 64, 3)


def test_the_schedulers_own_factors(tiny_folder: Path, tmp_path: Path) -> None:
    """They count from the first size, and leave the picture's to whoever builds."""
    edit_json(
        tiny_folder / "scheduler/scheduler_config.json",
        _class_name="FlowMatchLCMScheduler",
        scale_factors=[2, 3, 4],
        upscale_mode="bicubic",
    )
    (tiny_folder / "student.json").unlink()
    planned = plan(request(tiny_folder, tmp_path / "b", scales=None))
    assert (planned.sampling.scales, planned.sampling.upscale_mode) == ((0.25, 0.5, 0.75, 1.0), "bicubic")
    assert planned.options.dynamic
    with pytest.raises(InputError, match=r"scales: the student's latents grow in other steps \(expected 4, got 2\)"):
        plan(request(tiny_folder, tmp_path / "b", scales=None, sigmas_after_shift=None, steps=2))
    edit_json(tiny_folder / "scheduler/scheduler_config.json", scale_factors=[2, "3"], upscale_mode="area")
    with pytest.raises(InputError, match=r"scale_factors: wrong[\s\S]*upscale_mode: wrong \(expected nearest or"):
        plan(request(tiny_folder, tmp_path / "b", scales=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": (32, 64, 128)}, r"scales: not one for each step \(expected 4, got 3\)"),
        ({"scales": (64, 32, 96, 128)}, r"scales: wrong \(expected numbers above 0 that do not fall"),
        ({"scales": (1, 2, 3, 7)}, r"scales: make latents that are no whole patches \(expected multiples of 2, got 1 x 2\)"),
        ({"sampler": "euler"}, r"scales: latents grow where noise is drawn anew in every step \(expected renoise, got euler\)"),
        ({"layout": "optimum"}, "--scales: only this project's runtime enlarges latents"),
        ({"tier": "browser"}, "--scales: the browser's page draws one size"),
        (
            {"tier": "laptop-apple", "format": "coreml", "layout": "swift", "max_sequence_length": None},
            "--scales: only this project's runtime enlarges latents",
        ),
    ],
    ids=["too few", "falling", "half a patch", "euler", "optimum", "browser", "swift"],
)
def test_what_cannot_grow(changes: dict[str, Any], message: str, students: dict[str, Student], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        plan(request(students["tiny"], tmp_path / "b", **changes))


def test_a_manifest_whose_scales_fit_nothing(bundle: Bundle) -> None:
    sampling = msgspec.structs.replace(bundle.manifest.sampling, scales=(0.5, 1.0))
    with pytest.raises(InputError, match="scales are wrong"):
        parse_manifest(msgspec.structs.replace(bundle.manifest, sampling=sampling).to_json(), Path("manifest.json"))


def test_a_forecast_counts_each_step_at_its_size(bundle: Bundle) -> None:
    counted = costs(bundle)
    (prediction, *_) = predictions(bundle, ["desktop-cpu"], counted)
    runs = {graph.name: graph.runs for graph in prediction.graphs}
    sized = ["denoiser, 32 x 16 px", "denoiser, 64 x 32 px", "denoiser, 96 x 48 px", "denoiser"]
    assert [(name, runs[name]) for name in sized] == [(name, 1) for name in sized]
    work = [counted[name].multiply_adds for name in sized]
    assert all(less < more for less, more in itertools.pairwise(work))
    assert "denoiser, 96 x 48 px" in render(bundle, counted, [prediction])


@pytest.mark.skipif(find_spec("coremltools") is None, reason="coremltools is not installed (flash-deploy[coreml])")
def test_programs_of_each_size(students: dict[str, Student], tmp_path: Path) -> None:
    """In Core ML, whose programs have one size, each size has a denoiser; all are measured, and what is missing is said."""
    options: dict[str, Any] = {"tier": "laptop-apple", "format": "coreml", "precision": "fp16", "parity": "never"}
    grown = build(request(students["tiny"], tmp_path / "b", **options))
    sized = ["denoiser_4x2", "denoiser_8x4", "denoiser_12x6"]
    assert [graph.name for graph in grown.manifest.graphs] == ["text_encoder", "conditioner", "denoiser", *sized, "vae_decoder"]
    report = verify(grown.folder, students["tiny"].path, pictures=False)
    assert (report.complaints, [*report.graph_db]) == ([], [graph.name for graph in grown.manifest.graphs])
    assert min(report.graph_db.values()) >= 50
    plain = build(request(students["tiny"], tmp_path / "onnx"))
    noise = np.random.default_rng(0).standard_normal((1, 16, *SIZES[0]), np.float32)
    pictures = [Pipeline(one).generate(PROMPT, seed=3, latents=noise) for one in (plain, grown)]
    assert psnr_db(*pictures) >= 40
    runs = {graph.name: graph.runs for graph in predictions(grown)[0].graphs}
    assert [runs[name] for name in (*sized, "denoiser")] == [1, 1, 1, 1]
    graphs = tuple(graph for graph in grown.manifest.graphs if graph.name != "denoiser_8x4")
    with pytest.raises(InputError, match=r"graphs are missing \(expected those of the layout native, got no denoiser_8x4\)"):
        parse_manifest(msgspec.structs.replace(grown.manifest, graphs=graphs).to_json(), Path("manifest.json"))
