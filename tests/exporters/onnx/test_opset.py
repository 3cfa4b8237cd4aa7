"""Graphs at an older opset compute the same, or are refused by the operator's name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from exporters.errors import ExportError
from exporters.layouts.plan import plan_graphs
from exporters.onnx.opset import LowerOpset
from exporters.onnx.passes import PassOptions, clean_up
from exporters.student.student import Student
from quantization.profile import uniform
from tests.helpers.exported import CPU, OPTIONS, db, export

HEAD = '<ir_version: 10, opset_import: ["" : 23]> graph '
NORM = HEAD + "({0}[2,5,64] x, {0}[64] scale) => ({0}[2,5,64] y) {{ y = RMSNormalization <{1}> (x, scale) }}"


def run(model: ir.Model, inputs: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, inputs)[0]
    return result


@pytest.mark.parametrize("attributes", ["epsilon = 1e-6", "axis = -1", "epsilon = 0.5, stash_type = 1"])
@pytest.mark.parametrize(("kind", "atol"), [("float", 1e-6), ("float16", 4e-3)])
def test_rms_norm(attributes: str, kind: str, atol: float) -> None:
    """In fp16, too, of values whose squares fp16 does not hold; 4e-3 is a unit in the last place of 4 to 8."""
    rng, dtype = np.random.default_rng(0), np.float32 if kind == "float" else np.float16
    x, scale = (300 * rng.standard_normal((2, 5, 64))).astype(dtype), rng.standard_normal(64).astype(dtype)
    text = NORM.format(kind, attributes)
    model = LowerOpset(21)(ir.from_onnx_text(text)).model
    assert "RMSNormalization" not in {node.op_type for node in model.graph}
    assert model.graph.opset_imports[""] == 21
    got, wanted = (run(one, {"x": x, "scale": scale}).astype(np.float32) for one in (model, ir.from_onnx_text(text)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=atol)


REFUSED = {
    "an operator that is newer": (
        HEAD + "(float[1,2,4,8] x, float[1,4,4] c) => (float[1,2,4,8] y) { y = RotaryEmbedding (x, c, c) }",
        r"RotaryEmbedding: the operator is newer \(expected one of opset 21, got one of opset 23\)",
    ),
    "a norm over two axes": (NORM.format("float", "axis = 1"), "RMSNormalization: the operator is newer"),
    "an attribute": (
        HEAD + "(int8[4] x, float s) => (float[4] y) { y = DequantizeLinear <output_dtype = 1> (x, s) }",
        r"DequantizeLinear.*: the operator has no attribute output_dtype yet \(expected opset 21\)",
    ),
    "a type": (
        HEAD + "(float4e2m1[4] x) => (float[4] y) { y = Cast <to = 1> (x) }",
        r"Cast.*: the operator does not take this type yet \(expected opset 21, got tensor\(float4e2m1\)\)",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_opset_does_not_have(text: str, message: str) -> None:
    with pytest.raises(ExportError) as error:
        clean_up(ir.from_onnx_text(text), PassOptions(uniform("fp32"), opset=21))
    complaint = str(error.value)
    assert complaint.startswith("The graph cannot be made for opset 21.")
    assert complaint.endswith("What to do: --opset 23")
    assert re.search(message, complaint), complaint


@pytest.mark.parametrize(
    ("graph", "compute"), [("text_encoder", torch.float32), ("denoiser", torch.float32), ("denoiser", torch.float16)], ids=str
)
def test_graphs_compute_what_diffusers_computes(
    graph: str, compute: torch.dtype, students: dict[str, Student], tmp_path: Path
) -> None:
    """T5 and QK-norm have RMS norms, and every attention becomes the older kernel, whatever the tier takes."""
    student, options = students["tiny"], replace(OPTIONS, keep_t5=True)
    [spec] = [spec for spec in plan_graphs(student, options) if spec.name == graph]
    scheme = "fp32" if compute == torch.float32 else "fp16"
    model = export(spec, tmp_path, compute, replace(CPU, profile=uniform(scheme), attention="Attention", opset=21))
    assert (model.ir_version, model.graph.opset_imports[""]) == (10, 21)
    assert not {"RMSNormalization", "Attention"} & {node.op_type for node in model.graph}
    assert db(spec, tmp_path, student, options) >= (100 if compute == torch.float32 else 50)
