"""ONNX graphs of one product, quantized and run."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

from exporters.onnx.quantize import QuantizeWeights
from exporters.onnx.weights import LazyWeight
from exporters.student.weights.weight import Weight
from quantization.profile import uniform


def graph_of(
    kind: str, weight: np.ndarray, x_shape: tuple[int, ...], readers: int = 1, dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Model:
    """One product (or convolution, or look-up) with a weight ``[out, in]`` as linear layers are traced."""
    stored = Weight(weight.shape, weight.dtype, lambda: weight, "transformer: w.weight", "transformer", "w.weight")
    tensor = LazyWeight(stored, dtype, "w.weight", transposed=kind == "MatMul")
    w = ir.Value(name="w.weight", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    x = ir.Value(name="x", shape=ir.Shape(x_shape), type=ir.TensorType(ir.DataType.INT64 if kind == "Gather" else dtype))
    initializers = [w]
    if kind == "Gemm":
        bias = ir.Value(name="b", const_value=ir.Tensor(np.arange(len(weight), dtype=np.float32), name="b"))
        bias.shape, bias.type = ir.Shape((len(weight),)), ir.TensorType(ir.DataType.FLOAT)
        initializers.append(bias)
        nodes = [ir.node("Gemm", [x, w, bias], {"transB": 1})]
    elif kind == "Gather":
        nodes = [ir.node("Gather", [w, x])]
    else:
        nodes = [ir.node(kind, [x, w]) for _ in range(readers)]
    for node in nodes:
        node.outputs[0].type = ir.TensorType(dtype)
    outputs = [node.outputs[0] for node in nodes]
    for i, output in enumerate(outputs):
        output.name = f"y{i}"
    return ir.Model(
        ir.Graph([x], outputs, nodes=nodes, initializers=initializers, opset_imports={"": 23}, name="g"), ir_version=10
    )


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    for value in model.graph.initializers.values():
        if hasattr(value.const_value, "read"):
            value.const_value = ir.Tensor(value.const_value.read(), name=value.name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = ir.serde.serialize_model(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def quantize(model: ir.Model, scheme: str) -> QuantizeWeights:
    quantizer = QuantizeWeights(uniform(scheme))
    quantizer(model)
    return quantizer
