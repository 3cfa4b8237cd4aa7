from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock

from exporters.errors import ExportError
from exporters.half import HalfGraph, Ranges, parts_ruled_fp32
from exporters.layouts.plan import plan_graphs
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import GraphOptions, GraphSpec
from exporters.onnx.passes import PassOptions, clean_up
from exporters.onnx.trace import trace
from exporters.onnx.writer import write
from exporters.reference.parity import measure, onnx_runner, reference_cases
from exporters.streamed.module import Streaming, stream
from exporters.student.student import Student
from exporters.student.weights.weight import Weight
from quantization.profile import Profile, Rule, uniform
from quantization.schemes import parse_scheme

OPTIONS = GraphOptions("native", 48, 80, (1000.0, 500.0), clip_tokens=20, keep_t5=False, max_sequence_length=9)
SAMPLING = Sampling("euler", (1.0, 0.5, 0.0), (1000.0, 500.0))
FP16 = uniform("fp16")
VAE_IN_FP32 = Profile((*FP16.rules, Rule("vae", "*", parse_scheme("fp32"))))


def scaled(student: Student, component: str, factors: dict[str, float]) -> Student:
    """The student with the weights whose names match made larger; read through the same lazy weights."""

    def larger(weight: Weight, factor: float) -> Weight:
        return replace(weight, load=lambda: weight.load().astype(np.float32) * np.float32(factor), dtype=np.dtype(np.float32))

    weights = dict(student.weights[component])
    for pattern, factor in factors.items():
        weights |= {name: larger(weight, factor) for name, weight in weights.items() if re.search(pattern, name)}
    return replace(student, weights={**student.weights, component: weights})


def graph(student: Student, name: str, options: GraphOptions = OPTIONS) -> GraphSpec:
    return next(spec for spec in plan_graphs(student, options) if spec.name == name)


def half_graph(student: Student, name: str, options: GraphOptions = OPTIONS) -> HalfGraph:
    return HalfGraph(graph(student, name, options), FP16, frozenset(Ranges(student, options, SAMPLING).too_wide(name)))


HAZARDS = {
    "a VAE's residual stream": ("vae_decoder", "vae", {r"decoder\.conv_in\.weight": 3e3, r"decoder\..*conv2\.weight": 3e4}),
    "a VAE's shortcut": ("vae_decoder", "vae", {r"decoder\..*conv_shortcut\.weight": 2e4}),
    "a transformer's feed-forward": ("denoiser", "transformer", {r"ff\.net\.2\.(weight|bias)": 1e5}),
    "T5's gates, each of which fits": ("text_encoder", "text_encoder_3", {r"DenseReluDense\.wi_[01]\.weight": 3e3}),
    "CLIP's feed-forward": ("text_encoder", "text_encoder", {r"mlp\.fc2\.(weight|bias)": 1e5}),
}


@pytest.mark.parametrize("layout", ["native", "optimum"])
@pytest.mark.parametrize(("name", "component", "factors"), HAZARDS.values(), ids=HAZARDS)
def test_what_outgrows_fp16_computes_in_fp32(
    layout: str, name: str, component: str, factors: dict[str, float], students: dict[str, Student]
) -> None:
    """Rounded as hardware rounds, the graph keeps what fp16 promises; without its wide parts it does not."""
    student = students["tiny"]
    if layout == "optimum":
        name = {"denoiser": "transformer", "text_encoder": component}.get(name, name)
    options = replace(OPTIONS, layout=layout, keep_t5=student.has_t5, dynamic=layout == "optimum")
    large = scaled(student, component, factors)
    half = half_graph(large, name, options)
    assert half.wide
    cases = reference_cases(half.spec, large, options)
    assert measure(cases, half.runner(), half.spec, half.overflow) >= 50
    narrow = replace(half, wide=frozenset())
    message = (
        r"fp16 overflows\.\n  - .*outgrows fp16 \(expected values of at most 65504\)\nWhat to do: build with --precision fp32"
    )
    with pytest.raises(ExportError, match=message):
        measure(cases, narrow.runner(), half.spec, narrow.overflow)


def test_scores_that_may_outgrow_fp16_are_fp32(students: dict[str, Student]) -> None:
    """Queries and keys of a few thousand, without a norm: each fits, and their products do not, in kernels that keep those."""
    large = scaled(students["no qk_norm, no dual"], "transformer", {r"to_[qk]\.weight": 1e3})
    half = half_graph(large, "denoiser")
    assert half.wide == {f"transformer_blocks.{i}.attn" for i in range(2)}
    model = traced(half.spec, FP16, half.wide)
    attentions = [node for node in model.graph if node.op_type == "MultiHeadAttention"]
    assert {value.dtype for node in attentions for value in node.inputs[:3]} == {ir.DataType.FLOAT}
    assert {node.inputs[1].dtype for node in model.graph if node.op_type == "MatMul"} == {ir.DataType.FLOAT16}


def test_nothing_is_wide_that_fits(students: dict[str, Student]) -> None:
    ranges = Ranges(students["tiny"], replace(OPTIONS, keep_t5=True), SAMPLING)
    assert [ranges.too_wide(name) for name in ("vae_decoder", "denoiser", "conditioner", "text_encoder")] == [set()] * 4


def test_ranges_of_a_vae_in_bands(students: dict[str, Student], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are measured at once, in a small picture, which the bands of a large one need not divide."""
    monkeypatch.setattr("exporters.half.REHEARSED_PIXELS", 64)
    options = replace(OPTIONS, height=96, width=96, vae_bands=3)
    *_, factors = HAZARDS["a VAE's residual stream"]
    large = scaled(students["tiny"], "vae", factors)
    wide = Ranges(large, options, SAMPLING).too_wide("vae_decoder")
    assert wide
    half = HalfGraph(graph(large, "vae_decoder", options), FP16, frozenset(wide))
    assert measure(reference_cases(half.spec, large, options), half.runner(), half.spec, half.overflow) >= 50


def test_overflow_names_the_part(students: dict[str, Student]) -> None:
    large = scaled(students["tiny"], "vae", {r"decoder\.conv_in\.weight": 1e6})
    half = HalfGraph(graph(large, "vae_decoder"), FP16)
    assert half.overflow(reference_cases(half.spec, large, OPTIONS)[0].inputs) == "decoder.conv_in"


def test_a_graph_below_its_threshold_gets_fp32_parts_until_it_is_above(students: dict[str, Student]) -> None:
    """fp16 alone stays below 70 dB; the fp32 parts are few where few are enough, and all where the weights themselves lose."""
    half = HalfGraph(graph(students["tiny"], "denoiser"), FP16)
    cases = reference_cases(half.spec, students["tiny"], OPTIONS)
    fp16_db = half.worst_db(cases)
    assert half.widened(cases, fp16_db) == half
    more = half.widened(cases, fp16_db + 1)
    every = half.widened(cases, 1000.0)
    assert set() < more.wide < every.wide
    assert more.worst_db(cases) >= fp16_db + 1
    assert every.wide == set(parts_ruled_fp32(half.spec, uniform("fp32")))


def test_what_is_scaled_to_fit_loses_nothing_by_it(students: dict[str, Student]) -> None:
    """T5's last product takes and makes a 256th in fp16: set beside its result in fp32, it would seem to lose everything."""
    options = replace(OPTIONS, keep_t5=True)
    half = HalfGraph(graph(students["tiny"], "text_encoder", options), FP16)
    given = reference_cases(half.spec, students["tiny"], options)[0].inputs
    losing = half._parts_by_loss(given)
    assert len(losing) == len(parts_ruled_fp32(half.spec, uniform("fp32")))
    assert [part for part in losing if part.endswith(".wo")] != losing[:2]


def test_a_student_that_computes_nan_is_not_told_of_fp16(students: dict[str, Student]) -> None:
    large = scaled(students["tiny"], "vae", {r"decoder\.conv_in\.weight": np.nan})
    half = HalfGraph(graph(large, "vae_decoder"), FP16)
    cases = reference_cases(half.spec, large, OPTIONS)
    for measured in (lambda: measure(cases, half.runner(), half.spec, half.overflow), lambda: half.widened(cases, 50)):
        with pytest.raises(ExportError, match=r"of the reference are NaN[\s\S]*its weights are damaged"):
            measured()


def traced(spec: GraphSpec, profile: Profile, wide: Collection[str]) -> ir.Model:
    return clean_up(trace(spec, torch.float16, wide=wide), PassOptions(profile))[0]


def test_residual_stream_of_a_vae_graph_is_fp32(students: dict[str, Student]) -> None:
    """Every sum of a block and what goes past it; what a convolution takes and makes is fp16."""
    model = traced(graph(students["tiny"], "vae_decoder"), FP16, set())
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    assert {node.inputs[0].dtype for node in convolutions} == {ir.DataType.FLOAT16}
    sums = [node for node in model.graph if node.op_type == "Add" and len(node.outputs[0].shape) == 4]
    streams = [node for node in sums if not any(value.const_value is not None for value in node.inputs)]
    assert len(streams) >= 6
    assert {node.outputs[0].dtype for node in streams} == {ir.DataType.FLOAT}


@pytest.mark.parametrize("shape", ["tiny", "tiny decoder"])
@pytest.mark.parametrize("name", ["vae_decoder", "vae_encoder"])
def test_residual_streams_of_the_vae_are_fp32(name: str, shape: str, students: dict[str, Student]) -> None:
    """Of both halves, where they are run: what each block takes and makes."""
    options = replace(OPTIONS, layout="optimum", dynamic=True)
    spec = graph(students[shape], name, options)
    module = stream(spec, Streaming(compute=torch.float16))
    seen: list[torch.dtype] = []
    for part in module.modules():
        if isinstance(part, ResnetBlock2D | Attention | AutoencoderTinyBlock):
            part.register_forward_hook(lambda _, taken, output: seen.extend((taken[0].dtype, output.dtype)))
    case = reference_cases(spec, students[shape], options)[0]
    with torch.no_grad():
        module(*(torch.from_numpy(case.inputs[port.name]) for port in spec.inputs))
    assert len(seen) >= 2 * (4 if shape == "tiny decoder" else 6)
    assert set(seen) == {torch.float32}


def test_rules_of_fp32_are_stored_and_computed_so(students: dict[str, Student], tmp_path: Path) -> None:
    """A profile's cure for what overflows: the whole VAE in fp32, 4 bytes for each of its numbers, and no convolution in fp16."""
    spec = graph(students["tiny"], "vae_decoder")
    wide = parts_ruled_fp32(spec, VAE_IN_FP32)
    assert parts_ruled_fp32(spec, FP16) == parts_ruled_fp32(graph(students["tiny"], "denoiser"), VAE_IN_FP32) == set()
    model = traced(spec, VAE_IN_FP32, wide)
    products = [node for node in model.graph if node.op_type in ("Conv", "MatMul", "Gemm", "MultiHeadAttention")]
    assert {value.dtype for node in products for value in node.inputs if value is not None} == {ir.DataType.FLOAT}
    stored = {value.dtype for value in model.graph.initializers.values() if value.dtype.is_floating_point()}
    assert stored == {ir.DataType.FLOAT}
    write(model, tmp_path, spec.path)
    assert measure(reference_cases(spec, students["tiny"], OPTIONS), onnx_runner(tmp_path / spec.path), spec) >= 100


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("denoiser", "tiny"),
        ("denoiser", "no qk_norm, no dual"),
        ("denoiser", "all dual, bf16"),
        ("text_encoder", "tiny"),
        ("conditioner", "no qk_norm, no dual"),
        ("vae_decoder", "all dual, bf16"),
        ("vae_decoder", "tiny decoder"),
    ],
)
def test_files_compute_in_fp32_what_the_module_says(name: str, shape: str, students: dict[str, Student], tmp_path: Path) -> None:
    """Half of the parts in fp32, among them one side of every joint attention: types meet, the graph loads, and is right."""
    student = students[shape]
    options = replace(OPTIONS, keep_t5=student.has_t5)
    spec = graph(student, name, options)
    parts = sorted(parts_ruled_fp32(spec, uniform("fp32")))
    wide = {part for i, part in enumerate(parts) if i % 2}
    model = traced(spec, FP16, wide)
    computed = {node.inputs[1].dtype for node in model.graph if node.op_type in ("Conv", "MatMul", "Gemm")}
    assert computed == {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    write(model, tmp_path, spec.path)
    cases = reference_cases(spec, student, options)
    assert measure(cases, onnx_runner(tmp_path / spec.path), spec) >= 50
    assert HalfGraph(spec, FP16, frozenset(wide)).worst_db(cases) >= 50
