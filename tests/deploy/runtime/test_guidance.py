"""Guided pictures against diffusers', as a user calls it: nothing of this project but the latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from deploy.build import BuildRequest, build
from deploy.bundle.folder import Bundle, open_bundle
from deploy.bundle.inspect import inspect_bundle, render
from deploy.errors import InputError
from deploy.runtime.pipeline import Pipeline
from exporters.reference.decibels import psnr_db
from exporters.reference.diffusers import reference_pipeline
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers.kept_bundle import V1

PROMPT, NEGATIVE = "a red circle left of a blue square on a white background", "a green triangle"
LATENTS = np.random.default_rng(5).standard_normal((1, 16, 8, 8), np.float32)


@pytest.fixture(scope="module")
def teacher() -> Any:
    """The built-in student's teacher, which wants guidance, in diffusers."""
    return reference_pipeline(open_student(variant="teacher"), keep_t5=False)


@pytest.fixture(scope="module", params=["native", "optimum"])
def guided(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(
        BuildRequest(
            output=tmp_path_factory.mktemp("guided") / "bundle",
            variant="teacher",
            layout=request.param,
            precision="fp32",
            keep_t5=False,
            sigmas=(1.0, 0.75, 0.5, 0.25),
            guidance_scale=4.5,
            negative_prompt=NEGATIVE,
            parity="never",
        )
    )


def drawn(pipeline: Any, **options: Any) -> np.ndarray:
    """What diffusers draws in four steps."""
    given: dict[str, Any] = {
        "height": 64,
        "width": 64,
        "sigmas": [1.0, 0.75, 0.5, 0.25],
        "max_sequence_length": 24,
        "latents": torch.from_numpy(LATENTS),
        "output_type": "np",
    }
    return np.asarray(pipeline(PROMPT, **given | options).images)


def test_a_bundles_own_guidance_is_diffusers(guided: Bundle, teacher: Any) -> None:
    expected = drawn(teacher, guidance_scale=4.5, negative_prompt=NEGATIVE)
    assert psnr_db(expected, Pipeline(guided).generate(PROMPT, latents=LATENTS)) >= 50
    assert psnr_db(expected, drawn(teacher, guidance_scale=4.5)) < 30  # the comparison can fail: by the negative prompt,
    assert psnr_db(expected, drawn(teacher, guidance_scale=3.5, negative_prompt=NEGATIVE)) < 45  # and by the scale


def test_what_is_asked_for_goes_before_it(guided: Bundle, teacher: Any) -> None:
    pipeline = Pipeline(guided)
    without = pipeline.generate(PROMPT, latents=LATENTS, guidance_scale=1.0)
    assert psnr_db(drawn(teacher, guidance_scale=1.0), without) >= 50
    other = pipeline.generate(PROMPT, latents=LATENTS, guidance_scale=2.0, negative_prompt="")
    assert psnr_db(drawn(teacher, guidance_scale=2.0), other) >= 50
    several = pipeline.generate(
        [PROMPT, PROMPT], latents=np.concatenate([LATENTS] * 2), guidance_scale=2.0, negative_prompt=["", NEGATIVE]
    )
    assert psnr_db(other[0], several[0]) >= 100
    assert psnr_db(drawn(teacher, guidance_scale=2.0, negative_prompt=NEGATIVE)[0], several[1]) >= 50


def test_every_other_bundle_can_be_guided(builtin_bundle: Bundle) -> None:
    """Those that were built without, and before there was any."""
    for bundle in (builtin_bundle, open_bundle(V1)):
        plain, guided = (Pipeline(bundle).generate(PROMPT, seed=3, guidance_scale=scale) for scale in (None, 3.0))
        assert np.array_equal(plain, Pipeline(bundle).generate(PROMPT, seed=3, guidance_scale=0.0))
        assert psnr_db(plain, guided) < 60


def test_guidance_in_an_interval(guided: Bundle, teacher: Any) -> None:
    """Of the steps at noise levels .5 and .75, after the shift, guided is the one alone that lies in the interval."""
    sigmas = guided.manifest.sampling.sigmas
    low, high = sigmas[2] - 0.01, sigmas[1] + 0.01
    got = Pipeline(guided).generate(PROMPT, latents=LATENTS, guidance_interval=(low, high))

    def on_step(pipeline: Any, step: int, timestep: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pipeline._guidance_scale = 4.5 if step in (0, 1) else 1 + 1e-9  # of the next step
        return {}

    expected = drawn(teacher, guidance_scale=1 + 1e-9, negative_prompt=NEGATIVE, callback_on_step_end=on_step)
    assert psnr_db(expected, got) >= 50
    assert psnr_db(expected, Pipeline(guided).generate(PROMPT, latents=LATENTS)) < 45


@pytest.mark.parametrize("shape", ["tiny", "all dual, bf16"])
def test_layers_are_left_out(shape: str, students: dict[str, Student], tmp_path: Path) -> None:
    """By gates that are 0, in blocks with dual attention and without, and in the last, as diffusers leaves the blocks out."""
    student = students[shape]
    last = student.configs["transformer"]["num_layers"] - 1
    request = BuildRequest(
        output=tmp_path / "b", student=student.path, precision="fp32", height=64, width=64, keep_t5=False, steps=4,
        max_sequence_length=24, parity="never", sigmas=(1.0, 0.75, 0.5, 0.25),
    )  # fmt: skip
    pipeline = Pipeline(build(request))
    reference = reference_pipeline(student, keep_t5=False)
    options: dict[str, Any] = {"guidance_scale": 2.0, "skip_layer_guidance_stop": 0.7, "skip_layer_guidance_scale": 5.0}
    plain = drawn(reference, guidance_scale=2.0)
    for layers in ([0], [last], [0, last]):
        expected = drawn(reference, skip_guidance_layers=layers, **options)
        assert psnr_db(expected, pipeline.generate(PROMPT, latents=LATENTS, skip_guidance_layers=layers, **options)) >= 50
        assert psnr_db(expected, plain) < 45


def test_what_cannot_be_guided() -> None:
    pipeline = Pipeline(V1)
    with pytest.raises(
        InputError, match=r"negative_prompt: does nothing without guidance \(expected guidance_scale above 1, got 1\)"
    ):
        pipeline.generate(PROMPT, negative_prompt="ugly")
    with pytest.raises(InputError, match=r"guidance_scale: wrong \(expected a number from 0 to 100; 1 is none, got nan\)"):
        pipeline.generate(PROMPT, guidance_scale=float("nan"))
    with pytest.raises(InputError, match=r"guidance_interval: wrong \(expected two noise levels, from 0 to 1, that do not fall"):
        pipeline.generate(PROMPT, guidance_scale=2.0, guidance_interval=(0.9, 0.1))
    with pytest.raises(InputError, match="does not say which modulations are which layer's"):
        pipeline.generate(PROMPT, guidance_scale=2.0, skip_guidance_layers=[0], skip_layer_guidance_stop=1.0)
    with pytest.raises(InputError, match=r"negative_prompt: are not as many as prompts \(expected 2, got 1\)"):
        pipeline.generate([PROMPT, PROMPT], guidance_scale=2.0, negative_prompt=["ugly"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'guidance'"):
        pipeline.generate(PROMPT, guidance=2.0)  # type: ignore[call-arg]


def test_layers_that_are_not_there(guided: Bundle) -> None:
    pipeline = Pipeline(guided)
    layers = guided.manifest.blocks.num_layers if guided.manifest.blocks else 0
    with pytest.raises(InputError, match=rf"numbers of layers, each once, from 0 to {layers - 1}, got \[{layers}\]"):
        pipeline.generate(PROMPT, skip_guidance_layers=[layers])
    if guided.manifest.layout != "native":
        with pytest.raises(InputError, match="only graphs of the layout native can leave layers out"):
            pipeline.generate(PROMPT, skip_guidance_layers=[0], skip_layer_guidance_stop=1.0)


def test_a_bundle_says_how_it_is_guided(guided: Bundle) -> None:
    assert "guidance: 4.5 away from 'a green triangle'" in render(inspect_bundle(guided.folder))
    record = guided.manifest.sampling
    assert (record.passes, len(record.timesteps)) == (8, 4)
    wrong = msgspec.structs.replace(record.guidance, guidance_interval=(0.5, 2.0))
    manifest = msgspec.structs.replace(guided.manifest, sampling=msgspec.structs.replace(record, guidance=wrong))
    from deploy.bundle.manifest import parse_manifest

    with pytest.raises(InputError, match="guidance_interval: wrong"):
        parse_manifest(manifest.to_json(), Path("manifest.json"))
