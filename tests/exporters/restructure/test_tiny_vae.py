"""Graphs of an ``AutoencoderTiny`` against diffusers' own: the tolerances of test_restructure."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporters.choices import Layout
from exporters.errors import ExportError
from exporters.layouts.plan import plan_graphs
from exporters.layouts.spec import GraphSpec
from exporters.onnx.passes import PassOptions, clean_up
from exporters.onnx.trace import trace
from exporters.onnx.writer import write
from exporters.reference.decibels import snr_db
from exporters.reference.diffusers import reference_pipeline
from exporters.reference.parity import measure, onnx_runner, reference_cases
from exporters.student.open import open_student
from exporters.student.student import Student
from exporters.student.weights.templates import expected_shapes
from quantization.profile import uniform
from tests.exporters.restructure.test_restructure import OPTIONS, torch_db
from tests.helpers.modules import torch_module
from tests.helpers.student_files import WEIGHTS, edit_json, edit_weights

SMALL = replace(OPTIONS, height=32, width=48)


def graph(student: Student, name: str = "vae_decoder", layout: Layout = "native") -> GraphSpec:
    options = replace(SMALL, layout=layout, max_sequence_length=77, dynamic=layout == "optimum")
    return next(spec for spec in plan_graphs(student, options) if spec.name == name)


@pytest.fixture
def folder(students: dict[str, Student], tmp_path: Path) -> Path:
    """A copy of the student, to be changed."""
    return Path(shutil.copytree(students["tiny decoder"].path, tmp_path / "student"))


GRAPHS: list[tuple[Layout, str]] = [
    ("native", "vae_decoder"),
    ("swift", "vae_decoder"),
    ("optimum", "vae_decoder"),
    ("optimum", "vae_encoder"),
]


@pytest.mark.parametrize(("layout", "name"), GRAPHS)
def test_graphs_compute_what_diffusers_computes(layout: Layout, name: str, students: dict[str, Student]) -> None:
    student, options = students["tiny decoder"], replace(SMALL, layout=layout, max_sequence_length=77)
    spec = graph(student, name, layout)
    assert torch_db(spec, student, options) >= 100
    assert torch_db(spec, student, options, torch.float16) >= 50


def test_the_encoder_returns_latents_and_no_law(students: dict[str, Student]) -> None:
    [port] = graph(students["tiny decoder"], "vae_encoder", "optimum").outputs
    assert (port.name, port.shape) == ("latent_sample", ("batch", 16, "latent_height", "latent_width"))
    [port] = graph(students["tiny"], "vae_encoder", "optimum").outputs
    assert (port.name, port.shape[1]) == ("latent_parameters", 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        {"latent_magnitude": 5, "latent_shift": 0.1, "force_upcast": True},  # of its storing latents in bytes: no part of drawing
        {"act_fn": "silu"},
        {"act_fn": "gelu"},
    ],
    ids=str,
)
def test_every_key_is_honoured(changes: dict[str, object], folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", **changes)
    student = open_student(folder)
    assert torch_db(graph(student), student, SMALL) >= 100


def test_latents_are_unscaled_as_the_pipeline_does(folder: Path) -> None:
    """The pipeline itself, from the sampler's last latents to its picture; other factors give another."""
    edit_json(folder / "vae" / "config.json", scaling_factor=0.7, shift_factor=-0.4)
    student = open_student(folder)
    pipeline = reference_pipeline(student, keep_t5=False)
    latents = np.random.default_rng(0).standard_normal((1, 16, 4, 6), dtype=np.float32)

    def last(pipeline: object, step: int, timestep: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"latents": torch.from_numpy(latents)}

    out = pipeline("a cat", height=32, width=48, num_inference_steps=1, guidance_scale=1.0, max_sequence_length=16,
                   output_type="np", callback_on_step_end=last)  # fmt: skip
    with torch.no_grad():
        picture = torch_module(graph(student))(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()
        unshifted = torch_module(graph(student, layout="swift"))(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()
    assert snr_db(np.asarray(out.images), picture) >= 100
    assert snr_db(np.asarray(out.images), (unshifted / 2 + 0.5).clip(0, 1)) < 30


def test_what_is_wrong_is_noticed(students: dict[str, Student], folder: Path, tmp_path: Path) -> None:
    """A file against a student with one weight of another value, against one with another scale, and against itself."""
    student = students["tiny decoder"]
    spec = graph(student)
    write(clean_up(trace(spec, torch.float32), PassOptions(uniform("fp32")))[0], tmp_path, spec.path)
    run = onnx_runner(tmp_path / spec.path)
    assert measure(reference_cases(spec, student, SMALL), run, spec) >= 100
    edit_weights(folder / "vae" / WEIGHTS, lambda tensors: tensors["decoder.layers.5.weight"].__imul__(1.01))
    assert measure(reference_cases(spec, open_student(folder), SMALL), run, spec) < 60
    edit_weights(folder / "vae" / WEIGHTS, lambda tensors: tensors["decoder.layers.5.weight"].__itruediv__(1.01))
    edit_json(folder / "vae" / "config.json", scaling_factor=1.01)
    assert measure(reference_cases(spec, open_student(folder), SMALL), run, spec) < 60


def test_latents_are_clamped(students: dict[str, Student]) -> None:
    """Latents far outside are what their signs are."""
    decode = torch_module(graph(students["tiny decoder"], layout="swift"))
    far = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0)).sign() * 100
    with torch.no_grad():
        assert torch.equal(decode(far), decode(2 * far))


def test_a_decoder_of_another_scale_is_refused(folder: Path) -> None:
    """Three levels make pictures four times as large as the latents."""

    def cut(tensors: dict[str, np.ndarray]) -> None:
        shapes = expected_shapes("vae", json.loads((folder / "vae" / "config.json").read_text()))
        tensors.clear()
        tensors.update({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})

    levels = {f"{half}_block_out_channels": [8] * 3 for half in ("encoder", "decoder")}
    blocks = {f"num_{half}_blocks": [1] * 3 for half in ("encoder", "decoder")}
    edit_json(folder / "vae" / "config.json", **levels, **blocks, block_out_channels=[8] * 3)
    edit_weights(folder / "vae" / WEIGHTS, cut)
    with pytest.raises(ExportError, match=r"another scale \(expected 8 pixels per latent, got 4\)"):
        plan_graphs(open_student(folder), SMALL)
