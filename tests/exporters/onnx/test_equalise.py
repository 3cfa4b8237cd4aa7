from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from distillation.shape_world import sample_captions
from exporters.layouts.plan import plan_graphs
from exporters.onnx.passes import PassOptions, clean_up
from exporters.onnx.quantize import LazyCodes, QuantizeWeights
from exporters.onnx.trace import trace
from exporters.onnx.weights import LazyWeight
from exporters.reference.decibels import snr_db
from exporters.restructure.denoiser import reads_modulated
from exporters.streamed.calibrate import CalibrationPlan, calibrate
from exporters.student.student import Student
from exporters.student.weights.weight import Weight
from quantization.calibration import GRAMS, Calibration, CalibrationRecipe, Entry, gram_file, save_calibration
from quantization.profile import Profile, Rule, uniform
from quantization.schemes import parse_scheme
from tests.helpers.onnx_graphs import run
from tests.helpers.options import options_of

RNG = np.random.default_rng(0)
CHANNELS, OUT = 64, 48
SCALE = np.where(np.arange(CHANNELS) % 16 == 3, 40.0, 1.0).astype(np.float32)  # four channels stand out
WEIGHTS = {name: RNG.standard_normal((OUT, CHANNELS)).astype(np.float32) / SCALE for name in ("a", "b")}
X = RNG.standard_normal((200, CHANNELS)).astype(np.float32)
NORMED = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True) * SCALE


def value(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def norm_and_products(norm_is_output: bool = False) -> ir.Model:
    """A layer norm with outlier channels, read by two products."""
    x = ir.Value(name="x", shape=ir.Shape(X.shape), type=ir.TensorType(ir.DataType.FLOAT))
    scale, shift = value("scale", ir.Tensor(SCALE, name="scale")), value("shift", ir.Tensor(0 * SCALE, name="shift"))
    weights = []
    for name, weight in WEIGHTS.items():
        stored = Weight(weight.shape, weight.dtype, lambda weight=weight: weight, name, "transformer", name)
        weights.append(value(name, LazyWeight(stored, ir.DataType.FLOAT, name, transposed=True)))
    norm = ir.node("LayerNormalization", [x, scale, shift], {"axis": -1, "epsilon": 0.0})
    nodes = [norm, *(ir.node("MatMul", [norm.outputs[0], weight]) for weight in weights)]
    both = ir.node("Concat", [node.outputs[0] for node in nodes[1:]], {"axis": -1})
    for i, node in enumerate([*nodes, both]):
        node.outputs[0].name, node.outputs[0].type = f"y{i}", ir.TensorType(ir.DataType.FLOAT)
    outputs = [both.outputs[0], *([norm.outputs[0]] if norm_is_output else [])]
    graph = ir.Graph([x], outputs, nodes=[*nodes, both], initializers=[scale, shift, *weights], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10)


def calibration(folder: Path, grams: Mapping[str, int | None]) -> Calibration:
    """Knows the norm's outputs; ``grams`` says which product has which Gram matrix."""
    (folder / GRAMS).mkdir()
    for number in {number for number in grams.values() if number is not None}:
        np.save(gram_file(folder, number), NORMED.T @ NORMED)
    recipe = CalibrationRecipe(
        fingerprint="", prompts=("a",), seed=0, height=8, width=8, timesteps=(1.0,), keep_t5=False, max_sequence_length=1
    )
    entries = [
        Entry(component="transformer", name=name, layer="linear", inputs=200, rounding={0: 0.0}, gram=gram)
        for name, gram in grams.items()
    ]
    save_calibration(folder, recipe, entries, [(np.ones(OUT), np.ones(CHANNELS)) for _ in entries])
    return Calibration(folder)


def decibels(model: ir.Model) -> float:
    truth = NORMED @ np.concatenate([WEIGHTS["a"], WEIGHTS["b"]]).T
    return snr_db(truth, run(model, X))


@pytest.mark.parametrize("scheme", ["w8a8", "int8g64"])
def test_outlier_channels_cost_less(scheme: str, tmp_path: Path) -> None:
    """Each channel has the same part in the output; the step falls from 40 times what the narrow need to its root: 16 dB."""
    plain, with_factors = norm_and_products(), norm_and_products()
    QuantizeWeights(uniform(scheme))(plain)
    QuantizeWeights(uniform(scheme), calibration(tmp_path, {"a": 0, "b": 0}))(with_factors)
    divided = next(node for node in with_factors.graph if node.op_type == "LayerNormalization").inputs[1:]
    assert [vector.producer().op_type for vector in divided] == ["Mul", "Mul"]
    assert decibels(with_factors) - decibels(plain) == pytest.approx(16, abs=1.5)


@pytest.mark.parametrize(
    ("grams", "schemes", "norm_is_output"),
    [
        ({"a": 0, "b": 1}, ("w8a8", "w8a8"), False),
        ({"a": None, "b": None}, ("w8a8", "w8a8"), False),
        ({"a": 0}, ("w8a8", "w8a8"), False),
        ({"a": 0, "b": 0}, ("w8a8", "int8"), False),
        ({"a": 0, "b": 0}, ("w8a8", "fp32"), False),
        ({"a": 0, "b": 0}, ("int8", "int8"), False),
        ({"a": 0, "b": 0}, ("int4g32", "int4g32"), False),
        ({"a": 0, "b": 0}, ("w8a8", "w8a8"), True),
    ],
    ids=[
        "other inputs",
        "no Gram matrix",
        "one unknown",
        "one in int8",
        "one in fp32",
        "inputs not rounded",
        "4 bits",
        "norm is an output",
    ],
)
def test_where_it_does_not_fold(
    grams: dict[str, int | None], schemes: tuple[str, str], norm_is_output: bool, tmp_path: Path
) -> None:
    model = norm_and_products(norm_is_output)
    rules = tuple(Rule("transformer", name, parse_scheme(scheme)) for name, scheme in zip(WEIGHTS, schemes, strict=True))
    QuantizeWeights(Profile((*uniform("fp32").rules, *rules)), calibration(tmp_path, grams))(model)
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    assert [v.name for v in norm.inputs] == ["x", "scale", "shift"]
    encodings = [v.const_value.encoding for v in model.graph.initializers.values() if isinstance(v.const_value, LazyCodes)]
    assert all(encoding.factors is None for encoding in encodings)


def test_every_modulated_norm_of_the_denoiser_takes_factors(students: dict[str, Student], tmp_path: Path) -> None:
    options, sampling = options_of(students["tiny"])
    plan = CalibrationPlan(tuple(str(caption) for caption in sample_captions(1, 0)))
    calibration = calibrate(students["tiny"], options, sampling, plan, tmp_path)
    spec = next(spec for spec in plan_graphs(students["tiny"], options) if spec.name == "denoiser")
    model, _ = clean_up(trace(spec, torch.float32), PassOptions(uniform("w8a8"), calibration=calibration))
    encodings = [v.const_value.encoding for v in model.graph.initializers.values() if isinstance(v.const_value, LazyCodes)]
    names = {encoding.weight.name for encoding in encodings}
    assert {e.weight.name for e in encodings if e.factors is not None} == {name for name in names if reads_modulated(name)}
