from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.onnx.passes import FoldTransposedWeights, RewriteAttention, StoreHalfWeights, UnaliasRows
from exporters.onnx.weights import LazyWeight
from exporters.student.weights.weight import Weight
from quantization.profile import uniform

RNG = np.random.default_rng(0)


def weight(name: str, *shape: int) -> ir.Value:
    values = RNG.standard_normal(shape).astype(np.float32)
    tensor = LazyWeight(Weight(shape, values.dtype, lambda: values, name), ir.DataType.FLOAT, name)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def model(
    inputs: dict[str, tuple[int, ...]],
    text_nodes: list[ir.Node],
    weights: list[ir.Value],
    output: ir.Value,
    values: dict[str, ir.Value],
) -> ir.Model:
    output.name = "y"
    output.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [values[name] for name in inputs],
        [output],
        nodes=text_nodes,
        initializers=weights,
        opset_imports={"": 23},
        name="g",
    )
    return ir.Model(graph, ir_version=10)


def port(name: str, *shape: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def run(ir_model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    for value in ir_model.graph.initializers.values():
        if isinstance(value.const_value, LazyWeight):
            value.const_value = ir.Tensor(value.const_value.read(), name=value.name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.serde.serialize_model(ir_model).SerializeToString()
    return onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def feed_forward(hidden: int, readers: int = 1) -> ir.Model:
    x, first, bias, second = (
        port("x", 3, 8),
        weight("w1.weight", 8, hidden),
        weight("b1", hidden),
        weight("w2.weight", hidden, 5),
    )
    a = ir.node("MatMul", [x, first])
    b = ir.node("Add", [a.outputs[0], bias])
    c = ir.node("Gelu", [b.outputs[0]], {"approximate": "tanh"})
    d = ir.node("MatMul", [c.outputs[0], second])
    nodes = [a, b, c, d]
    out = d.outputs[0]
    if readers > 1:
        nodes += [ir.node("ReduceSum", [c.outputs[0]], {"keepdims": 0})]
        nodes += [ir.node("Add", [out, nodes[-1].outputs[0]])]
        out = nodes[-1].outputs[0]
    return model({"x": (3, 8)}, nodes, [first, bias, second], out, {"x": x})


def test_unaliased_rows_compute_the_same() -> None:
    feed = {"x": RNG.standard_normal((3, 8)).astype(np.float32)}
    plain, padded = feed_forward(1024), feed_forward(1024)
    for source, target in zip(plain.graph.initializers.values(), padded.graph.initializers.values(), strict=True):
        target.const_value = source.const_value
    assert UnaliasRows()(padded).modified
    assert [list(v.shape) for v in padded.graph.initializers.values()] == [[8, 1040], [1040], [1040, 5]]
    # Only zeros were added: the sums differ by their order alone.
    np.testing.assert_allclose(run(padded, feed), run(plain, feed), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("hidden", "readers"), [(1000, 1), (1024, 2)], ids=["no aliasing", "another reader"])
def test_rows_are_left_alone(hidden: int, readers: int) -> None:
    assert not UnaliasRows()(feed_forward(hidden, readers)).modified


def transposed(readers: int) -> ir.Model:
    x, w = port("x", 3, 8), weight("w.weight", 5, 8)
    t = ir.node("Transpose", [w], {"perm": [1, 0]})
    m = ir.node("MatMul", [x, t.outputs[0]])
    nodes = [t, m]
    out = m.outputs[0]
    if readers > 1:
        nodes += [ir.node("ReduceSum", [w], {"keepdims": 0})]
        nodes += [ir.node("Add", [out, nodes[-1].outputs[0]])]
        out = nodes[-1].outputs[0]
    return model({"x": (3, 8)}, nodes, [w], out, {"x": x})


def test_transposed_weight_is_stored_transposed() -> None:
    ir_model = transposed(1)
    assert FoldTransposedWeights()(ir_model).modified
    assert [node.op_type for node in ir_model.graph] == ["MatMul"]
    stored = ir_model.graph.initializers["w.weight"].const_value
    assert list(stored.shape) == [8, 5]
    assert np.array_equal(stored.read(), stored.weight.load().T)


def test_shared_weight_is_not_transposed() -> None:
    assert not FoldTransposedWeights()(transposed(2)).modified


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_becomes_multi_head_attention(biased: bool, causal: int) -> None:
    def attention() -> ir.Model:
        values = {name: port(name, 1, 6, 8) for name in ("q", "k", "v")}
        inputs = list(values.values())
        if biased:
            values["bias"] = port("bias", 1, 2, 6, 6)
            inputs.append(values["bias"])
        attributes = {"q_num_heads": 2, "kv_num_heads": 2, "scale": 0.3, "is_causal": causal}
        node = ir.node("Attention", inputs, attributes)
        return model(dict.fromkeys(values, ()), [node], [], node.outputs[0], values)

    feed = {name: RNG.standard_normal((1, 6, 8)).astype(np.float32) for name in ("q", "k", "v")}
    if biased:
        feed["bias"] = RNG.standard_normal((1, 2, 6, 6)).astype(np.float32)
    rewritten = attention()
    assert RewriteAttention()(rewritten).modified
    node = next(iter(rewritten.graph))
    assert (node.domain, node.op_type) == ("com.microsoft", "MultiHeadAttention")
    assert node.metadata_props["flash_deploy.rewritten_by"] == "RewriteAttention"
    assert rewritten.graph.outputs[0].name == "y"
    np.testing.assert_allclose(run(rewritten, feed), run(attention(), feed), rtol=0, atol=1e-5)


def test_half_weights_leave_the_computation_in_fp32() -> None:
    ir_model = transposed(1)
    FoldTransposedWeights()(ir_model)
    full = ir_model.graph.initializers["w.weight"].const_value.read()
    assert StoreHalfWeights(uniform("fp16"))(ir_model).modified
    stored = ir_model.graph.initializers["w.weight.fp16"].const_value
    assert stored.dtype == ir.DataType.FLOAT16
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(run(ir_model, {"x": x}), x @ full.astype(np.float16).astype(np.float32), rtol=0, atol=1e-5)
