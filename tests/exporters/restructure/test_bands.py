"""A VAE in bands of rows against diffusers' own: as exact as all of it at once (the tolerances of test_restructure)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.errors import ExportError
from exporters.layouts.plan import plan_graphs
from exporters.layouts.spec import GraphOptions, GraphSpec
from exporters.onnx.passes import PassOptions, clean_up
from exporters.onnx.quantize import LazyCodes
from exporters.onnx.trace import trace
from exporters.onnx.weights import LazyWeight
from exporters.onnx.writer import write
from exporters.reference.decibels import snr_db
from exporters.reference.parity import onnx_runner, reference_cases
from exporters.restructure import bands
from exporters.streamed.module import stream
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT, Student
from quantization.profile import uniform
from tests.exporters.restructure.test_restructure import OPTIONS, torch_db

WIDE = replace(OPTIONS, height=96, width=32, vae_encoder=True)
BUILTIN = replace(WIDE, height=64, clip_tokens=16)


def graph(student: Student, name: str, count: int, options: GraphOptions = WIDE) -> GraphSpec:
    return next(spec for spec in plan_graphs(student, replace(options, vae_bands=count)) if spec.name == name)


@pytest.mark.parametrize("count", [2, 3, 8, 24])
@pytest.mark.parametrize("name", ["vae_decoder", "vae_encoder"])
def test_bands_compute_what_diffusers_computes(name: str, count: int, students: dict[str, Student]) -> None:
    """Down to bands of a row at the second level, in a picture that is not square."""
    assert torch_db(graph(students["tiny"], name, count), students["tiny"], WIDE) >= 100
    if count == 3:
        assert torch_db(graph(students["tiny"], name, count), students["tiny"], WIDE, torch.float16) >= 50


@pytest.mark.parametrize("name", ["vae_decoder", "vae_encoder"])
def test_bands_of_a_trained_vae(name: str) -> None:
    """The built-in one, whose norms' means are of the picture and not of a band."""
    student = open_student(BUILTIN_STUDENT)
    assert torch_db(graph(student, name, 4, BUILTIN), student, BUILTIN) >= 100


def test_bands_that_know_nothing_of_each_other_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles, as others decode by: each with rows of zeros at its edges, or with its own mean."""
    student = open_student(BUILTIN_STUDENT)
    exact, banded = (stream(graph(student, "vae_decoder", count, BUILTIN)) for count in (1, 4))
    latents = torch.randn(1, 16, 8, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = exact(latents).numpy()
        assert snr_db(expected, banded(latents).numpy()) >= 100
        own = bands._convolved

        def alone(parts: bands.Bands, *rest: Any, **more: Any) -> Iterator[torch.Tensor]:
            return (made for part in parts for made in own([part], *rest, **more))

        monkeypatch.setattr(bands, "_convolved", alone)
        assert snr_db(expected, banded(latents).numpy()) < 40


def test_a_graph_in_bands(students: dict[str, Student], tmp_path: Path) -> None:
    """Of one weight each convolution, however many bands it has; int8 in bands is int8 at once."""
    student, made, stored = students["tiny"], {}, {}
    for count in (1, 2):
        spec = graph(student, "vae_decoder", count)
        model, kept = clean_up(trace(spec, torch.float32), PassOptions(uniform("int8")))
        assert not [one for one in kept if "several readers" in one.reason]
        weights = [value.const_value for value in model.graph.initializers.values()]
        stored[count] = sum(weight.nbytes for weight in weights if isinstance(weight, LazyWeight | LazyCodes))
        write(model, tmp_path / str(count), spec.path)
        made[count] = onnx_runner(tmp_path / str(count) / spec.path)(reference_cases(spec, student, WIDE)[0].inputs)
    assert stored[1] == stored[2]
    assert snr_db(made[1][0], made[2][0]) >= 100


def test_bands_that_do_not_divide_a_picture(students: dict[str, Student]) -> None:
    with pytest.raises(ExportError, match=r"vae_bands: do not divide the picture \(expected a divisor of 24, a quarter"):
        graph(students["tiny"], "vae_decoder", 5)
    with pytest.raises(ExportError, match="vae_bands: an AutoencoderTiny is computed at once"):
        graph(students["tiny decoder"], "vae_decoder", 2)


def test_a_gradient_passes(students: dict[str, Student]) -> None:
    """Nothing of a band is a constant of the trace."""
    module = stream(graph(students["tiny"], "vae_decoder", 3))
    latents = torch.zeros(1, 16, 12, 4, requires_grad=True)
    module(latents).square().sum().backward()
    assert latents.grad is not None
    assert np.isfinite(latents.grad.numpy()).all()
