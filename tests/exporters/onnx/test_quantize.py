from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.onnx.quantize import QuantizeWeights, pack_unsigned
from exporters.onnx.weights import LazyWeight
from exporters.onnx.writer import parameters
from exporters.reference.decibels import snr_db
from exporters.student.weights.weight import Weight
from quantization.codecs.integer import decode_integer, encode_integer
from quantization.profile import Profile, Rule, uniform
from quantization.schemes import parse_scheme
from tests.helpers.onnx_graphs import graph_of, quantize, run

RNG = np.random.default_rng(0)


def decoded(weight: np.ndarray, scheme: str) -> np.ndarray:
    return decode_integer(encode_integer(weight, parse_scheme(scheme), "w")).reshape(weight.shape)


OPERATORS = {
    "int8": "Cast",
    "w8a8": "MatMulInteger",
    "int8g32": "MatMulNBits",
    "int4g16": "MatMulNBits",
    "int2g32": "MatMulNBits",
    "uint4g32": "MatMulNBits",
    "uint8g16": "MatMulNBits",
}
# What rounding the activations to 8 bits costs: half a step of range/255 over normal activations (range 8): 41 dB, and per block
# a little less range. Weight-only operators differ from the decoded weight by fp32 rounding alone.
ACTIVATION_DB = {"int8": 120, "w8a8": 36, "int8g32": 36, "int4g16": 36, "int2g32": 36, "uint4g32": 36, "uint8g16": 36}


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
@pytest.mark.parametrize("scheme", OPERATORS)
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (7, 50)], ids=str)
def test_products_use_the_decoded_weight(kind: str, scheme: str, rows: int, columns: int) -> None:
    weight = RNG.standard_normal((rows, columns)).astype(np.float32)
    x = RNG.standard_normal((5, columns)).astype(np.float32)
    model = graph_of(kind, weight, x.shape)
    full_bytes = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    assert quantize(model, scheme).kept == []
    kinds = [node.op_type for node in model.graph]
    assert OPERATORS[scheme] in kinds
    assert "Gemm" not in kinds
    stored = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    beside = (rows * 4 if kind == "Gemm" else 0) + (scheme == "w8a8")  # biases, and one byte for a graph's unsigned zero
    assert stored == parse_scheme(scheme).size_bytes(weight.shape) + beside < full_bytes
    assert parameters(model) == weight.size
    expected = x @ decoded(weight, scheme).T + (np.arange(rows) if kind == "Gemm" else 0)
    assert snr_db(expected, run(model, x)) >= ACTIVATION_DB[scheme]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scheme", ["w8a8", "int8g32", "uint8g32", "int4g32", "uint4g32", "int2g32"])
def test_products_of_the_largest_codes_do_not_saturate(scheme: str, sign: int) -> None:
    """Inputs and weights at the ends of their codes, all of one sign: a sum of two products that is kept in 16 bits shows.

    What a processor with VNNI adds exactly another may not, so the operands are looked at too: unsigned inputs (w8a8) meet
    unsigned codes.
    """
    weight = np.full((8, 64), sign * 0.25, np.float32)
    x = np.full((2, 64), 3.0, np.float32)
    model = graph_of("MatMul", weight, x.shape)
    quantize(model, scheme)
    expected = x @ decoded(weight, scheme).T
    assert snr_db(expected, run(model, x)) >= 80  # both are exact in their codes: fp32 scales alone are rounded
    for node in model.graph:
        if node.op_type == "MatMulInteger":
            codes, zero = (node.inputs[i].const_value for i in (1, 3))
            assert (codes.dtype, zero.dtype, zero.numpy()) == (ir.DataType.UINT8, ir.DataType.UINT8, 128)
            assert np.abs(codes.numpy().astype(int) - 128).min() >= 127


def test_int8_in_fp16_scales_codes_before_the_product() -> None:
    """64 inputs of 100 and weights of 0.1 make 640; of their codes, 127, they would make 812,800: more than fp16 holds."""
    model = graph_of("MatMul", np.full((8, 64), 0.1, np.float32), (2, 64), dtype=ir.DataType.FLOAT16)
    quantize(model, "int8")
    assert [node.op_type for node in model.graph] == ["Cast", "Mul", "MatMul"]
    result = run(model, np.full((2, 64), 100, np.float16))
    assert result.dtype == np.float16
    assert result == pytest.approx(640, rel=2**-10)


def test_convolutions_take_int8() -> None:
    weight = RNG.standard_normal((6, 3, 3, 3)).astype(np.float32)
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    quantized, plain = graph_of("Conv", weight, x.shape), graph_of("Conv", decoded(weight, "int8"), x.shape)
    assert quantize(quantized, "int8").kept == []
    assert snr_db(run(plain, x), run(quantized, x)) >= 120


@pytest.mark.parametrize("scheme", ["int8", "w8a8"])
def test_embeddings_take_int8(scheme: str) -> None:
    weight = RNG.standard_normal((11, 6)).astype(np.float32)
    model = graph_of("Gather", weight, (2, 3))
    assert quantize(model, scheme).kept == []
    ids = np.array([[0, 10, 3], [10, 1, 7]])
    assert np.array_equal(run(model, ids), decoded(weight, "int8")[ids])  # the same product of a code and a scale


def test_products_of_one_input_share_its_rounding() -> None:
    model = graph_of("MatMul", RNG.standard_normal((8, 32)).astype(np.float32), (4, 32))
    x = model.graph.inputs[0]
    other = RNG.standard_normal((8, 32)).astype(np.float32)
    tensor = LazyWeight(
        Weight(other.shape, other.dtype, lambda: other, "v", "transformer", "v.weight"), ir.DataType.FLOAT, "v.weight", True
    )
    v = ir.Value(name="v.weight", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(v)
    node = ir.node("MatMul", [x, v])
    node.outputs[0].name, node.outputs[0].type = "y1", ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    quantize(model, "w8a8")
    assert [node.op_type for node in model.graph].count("DynamicQuantizeLinear") == 1


@pytest.mark.parametrize(
    ("kind", "scheme", "readers", "reason"),
    [
        ("Gather", "int4g32", 1, "embeddings take int8 only"),
        ("MatMul", "lut4", 1, "onnxruntime has no operator for look-up tables"),
        ("Conv", "int4g32", 1, "onnxruntime has no convolution with block scales"),
        ("MatMul", "int8", 2, "it has several readers"),
    ],
)
def test_what_cannot_be_converted_is_reported(kind: str, scheme: str, readers: int, reason: str) -> None:
    weight = RNG.standard_normal((6, 3, 3, 3) if kind == "Conv" else (6, 8)).astype(np.float32)
    x_shape = {"Gather": (2,), "Conv": (1, 3, 8, 8), "MatMul": (2, 8)}[kind]
    model = graph_of(kind, weight, x_shape, readers)
    kept = quantize(model, scheme).kept
    assert [(k.component, k.name, k.scheme, k.reason) for k in kept] == [("transformer", "w.weight", scheme, reason)]
    assert "w.weight" in model.graph.initializers


def test_rules_choose_by_name() -> None:
    model = graph_of("MatMul", RNG.standard_normal((6, 32)).astype(np.float32), (2, 32))
    rules = (*uniform("int4g32").rules, Rule("transformer", "w.*", parse_scheme("fp32")))
    assert not QuantizeWeights(Profile(rules))(model).modified


def test_packing_by_hand() -> None:
    # -8 -> 0, 7 -> 15 in the high half; -1 -> 7, 0 -> 8.
    assert pack_unsigned(np.array([[[-8, 7, -1, 0]]], np.int8), 4).tolist() == [[[0xF0, 0x87]]]
    assert pack_unsigned(np.array([[[-128, 127]]], np.int8), 8).tolist() == [[[0, 255]]]
    assert pack_unsigned(np.array([[[-2, -1, 0, 1]]], np.int8), 2).tolist() == [[[0b11100100]]]
