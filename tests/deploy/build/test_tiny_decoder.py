"""A student with an ``AutoencoderTiny``, from the command that makes one to pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.build import BuildRequest, build
from deploy.build.verify import verify
from deploy.bundle.folder import Bundle
from deploy.bundle.inspect import inspect_path, render
from deploy.cli.main import app
from deploy.forecast.predict import costs
from deploy.runtime.pipeline import Pipeline
from exporters.layouts.sampling import Sampling
from exporters.reference.decibels import psnr_db
from exporters.reference.pictures import reference_picture
from exporters.student.open import open_student
from tests.helpers.student_files import edit_json

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command; its factors are not those that change nothing."""
    folder = tmp_path_factory.mktemp("tiny decoder") / "student"
    result = CliRunner().invoke(app, ["make-student", "--tiny-decoder", "--no-t5", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    edit_json(folder / "vae" / "config.json", scaling_factor=0.8, shift_factor=0.1)
    assert "vae: class AutoencoderTiny, scaling_factor 0.8, shift_factor 0.1" in render(inspect_path(folder))
    return folder


@pytest.fixture(scope="module")
def asked(student: Path) -> BuildRequest:
    size = {"height": 32, "width": 48, "max_sequence_length": 7}
    return BuildRequest(output=student.with_name("bundle"), student=student, precision="fp32", **size)


@pytest.fixture(scope="module")
def bundle(asked: BuildRequest) -> Bundle:
    return build(asked)


def test_pictures_are_those_of_diffusers(student: Path, bundle: Bundle) -> None:
    """100 dB of every graph and of pictures is what test_verify asks of the built-in student."""
    manifest = bundle.manifest
    assert all(graph.parity_db is not None and graph.parity_db >= 100 for graph in manifest.graphs)
    assert (manifest.picture.scaling_factor, manifest.picture.shift_factor) == (0.8, 0.1)
    report = verify(bundle.folder, student)
    assert report.complaints == []
    assert min(report.picture_db.values()) > 100
    latents = np.random.default_rng(0).standard_normal((1, 16, 4, 6), dtype=np.float32)
    sampling = Sampling(manifest.sampling.method, manifest.sampling.sigmas, manifest.sampling.timesteps)
    expected = reference_picture(open_student(student), PROMPT, latents, sampling, keep_t5=False, max_sequence_length=7)
    assert psnr_db(expected, Pipeline(bundle).generate(PROMPT, latents=latents)) > 100
    assert not any(cost.uncounted for cost in costs(bundle).values())


def test_core_ml_programs_draw_it_too(student: Path, asked: BuildRequest, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed (flash-deploy[coreml])")
    request = replace(asked, output=tmp_path / "programs", tier="laptop-apple", format="coreml", precision="fp16")
    bundle = build(request)
    decoder = bundle.manifest.graph("vae_decoder")
    assert decoder.parity_db is not None
    assert decoder.parity_db >= 45
    report = verify(bundle.folder, student)
    assert report.complaints == []
    assert min(report.picture_db.values()) > 40
    assert not any(cost.uncounted for cost in costs(bundle).values())
