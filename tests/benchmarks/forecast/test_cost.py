from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from benchmarks.forecast.coreml_cost import count_program
from benchmarks.forecast.cost import GraphCost, Operator, total
from benchmarks.forecast.onnx_cost import count_model, count_onnx
from deploy.bundle.folder import Bundle
from exporters.coreml.evaluate.dtypes import BY_NAME
from exporters.coreml.evaluate.program import Constant, Operation, Port, Program
from exporters.errors import ExportError
from exporters.layouts.plan import plan_graphs
from exporters.layouts.spec import GraphOptions
from exporters.onnx.passes import PassOptions, clean_up
from exporters.onnx.trace import trace
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT, Student
from quantization.profile import uniform

F32, F16, I8, U8, I64 = (
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT64,
)  # fmt: skip
Shape = tuple[int | str, ...]


def model(
    nodes: list[tuple[str, list[str], dict[str, Any]]],
    inputs: Mapping[str, Shape],
    weights: Mapping[str, np.ndarray] | None = None,
    types: Mapping[str, ir.DataType] | None = None,
) -> ir.Model:
    """Operators one after another; each one's result is named as it is: ``MatMul`` gives ``MatMul``; the last is the output."""
    values = {
        name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType((types or {}).get(name, F32)))
        for name, shape in inputs.items()
    }
    given = list(values.values())
    held = {name: ir.Value(name=name, const_value=ir.Tensor(array, name=name)) for name, array in (weights or {}).items()}
    values |= held
    built_nodes = []
    for kind, taken, attributes in nodes:
        domain, _, op = kind.rpartition("::")
        count = 3 if op == "DynamicQuantizeLinear" else 1
        node = ir.node(op, [values[name] if name else None for name in taken], attributes, domain=domain, num_outputs=count)
        for i, result in enumerate(node.outputs):
            result.name = op if i == 0 else f"{op}.{i}"
            values[result.name] = result
        built_nodes.append(node)
    opsets = {"": 23, "com.microsoft": 1}
    graph = ir.Graph(
        given, [built_nodes[-1].outputs[0]], nodes=built_nodes, initializers=list(held.values()), opset_imports=opsets, name="g"
    )
    return ir.Model(graph, ir_version=10)


def only(operators: list[Operator]) -> Operator:
    (operator,) = operators
    assert not operator.uncounted
    return operator


def test_a_product() -> None:
    onnx_model = model([("MatMul", ["x", "w"], {})], {"x": (2, 3, 4)}, {"w": np.zeros((4, 5), np.float32)})
    work = only(count_model(onnx_model, {}, "g")).work
    # 2 x 3 rows, each 5 sums of 4 products.
    assert (work.multiply_adds, work.flops) == (2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5)
    assert (work.weight_bytes, work.activation_bytes) == (4 * 4 * 5, 4 * (2 * 3 * 4 + 2 * 3 * 5))


def test_a_product_of_two_inputs_reads_no_weights() -> None:
    onnx_model = model([("MatMul", ["x", "y"], {})], {"x": (7, 2, 3), "y": (7, 3, 5)})
    work = only(count_model(onnx_model, {}, "g")).work
    assert (work.multiply_adds, work.weight_bytes) == (7 * 2 * 3 * 5, 0)


def test_gemm_with_transposed_weight_and_bias() -> None:
    weights = {"w": np.zeros((5, 4), np.float32), "b": np.zeros(5, np.float32)}
    onnx_model = model([("Gemm", ["x", "w", "b"], {"transB": 1})], {"x": (3, 4)}, weights)
    work = only(count_model(onnx_model, {}, "g")).work
    assert (work.multiply_adds, work.other_flops, work.weight_bytes) == (3 * 4 * 5, 3 * 5, 4 * (20 + 5))


@pytest.mark.parametrize(("groups", "inner"), [(1, 6), (2, 3)])
def test_a_convolution(groups: int, inner: int) -> None:
    weights = {"w": np.zeros((8, inner, 3, 3), np.float32), "b": np.zeros(8, np.float32)}
    attributes = {"pads": [1, 1, 1, 1], "strides": [2, 2], "group": groups, "kernel_shape": [3, 3]}
    onnx_model = model([("Conv", ["x", "w", "b"], attributes)], {"x": (1, 6, 10, 12)}, weights)
    work = only(count_model(onnx_model, {}, "g")).work
    # 8 channels of 5 x 6, each of 3 x 3 x (6 / groups) products.
    assert (work.multiply_adds, work.other_flops) == (8 * 5 * 6 * 9 * inner, 8 * 5 * 6)


def test_attention() -> None:
    inputs = {"q": (1, 3, 8), "k": (1, 5, 8), "v": (1, 5, 8)}
    packed = model([("com.microsoft::MultiHeadAttention", ["q", "k", "v"], {"num_heads": 2})], inputs)
    attributes = {"q_num_heads": 2, "kv_num_heads": 2, "scale": 0.5}
    standard = model([("Attention", ["q", "k", "v"], attributes)], inputs)
    for onnx_model in (packed, standard):
        operator = only(count_model(onnx_model, {}, "g"))
        # 2 heads, 3 queries, 5 keys: a score of 4 products each, and as many for the values.
        assert operator.work.multiply_adds == 2 * 3 * 5 * (4 + 4)
        assert operator.work.activation_bytes == 4 * (3 * 8 + 5 * 8 + 5 * 8 + 3 * 8)


def test_blocks_of_four_bits_are_read_as_they_are_stored() -> None:
    weights = {"codes": np.zeros((6, 2, 16), np.uint8), "scales": np.zeros(12, np.float32)}
    attributes = {"K": 64, "N": 6, "bits": 4, "block_size": 32, "accuracy_level": 4}
    onnx_model = model([("com.microsoft::MatMulNBits", ["x", "codes", "scales"], attributes)], {"x": (1, 3, 64)}, weights)
    operator = only(count_model(onnx_model, {}, "g"))
    assert (operator.arithmetic, operator.dtype) == ("blocks4", "fp32")
    assert (operator.work.multiply_adds, operator.work.weight_bytes) == (3 * 64 * 6, 6 * 32 + 4 * 12)


def test_dynamic_int8() -> None:
    weights = {"w": np.zeros((4, 5), np.int8)}
    nodes = [("DynamicQuantizeLinear", ["x"], {}), ("MatMulInteger", ["DynamicQuantizeLinear", "w"], {})]
    rounding, product = count_model(model(nodes, {"x": (3, 4)}, weights), {}, "g")
    assert (product.arithmetic, product.work.multiply_adds, product.work.weight_bytes) == ("w8a8", 3 * 4 * 5, 20)
    assert rounding.work.activation_bytes == 4 * 12 + 12 + 4 + 1  # fp32 in; levels, a scale and a zero point out


def test_a_cast_weight_is_read_as_the_product_holds_it() -> None:
    """onnxruntime folds the cast when it loads the graph."""
    nodes = [("Cast", ["w"], {"to": F32}), ("MatMul", ["x", "Cast"], {})]
    operator = only(count_model(model(nodes, {"x": (3, 4)}, {"w": np.zeros((4, 5), np.float16)}), {}, "g"))
    assert (operator.kind, operator.work.weight_bytes) == ("MatMul", 4 * 20)


def test_a_table_counts_the_rows_that_are_read() -> None:
    table = {"t": np.zeros((1000, 8), np.float32)}
    work = only(count_model(model([("Gather", ["t", "i"], {})], {"i": (3,)}, table, {"i": I64}), {}, "g")).work
    assert (work.flops, work.weight_bytes, work.activation_bytes) == (0, 4 * 3 * 8, 4 * 3 * 8)


def test_nothing_is_silently_zero() -> None:
    """An operator without a counter, and one whose shape depends on values, are named with the reason."""
    nodes = [("NonZero", ["x"], {}), ("Cast", ["NonZero"], {"to": F32})]
    operators = count_model(model(nodes, {"x": (3, 4)}), {}, "g")
    uncounted = GraphCost("g", tuple(operators)).uncounted
    assert uncounted["NonZero: no counter knows it"] == 1
    assert any(key.startswith("Cast: the shape of") for key in uncounted)


def test_open_sizes_are_given_by_name() -> None:
    def open_model() -> ir.Model:
        return model([("Relu", ["x"], {})], {"x": ("batch", 16, "latent_height", "latent_width")})

    sizes = {"batch": 1, "latent_height": 4, "latent_width": 6}
    assert only(count_model(open_model(), sizes, "g")).work.other_flops == 16 * 4 * 6
    with pytest.raises(ExportError, match=r"(?s)leaves a size open.*latent_width"):
        count_model(open_model(), {"batch": 1, "latent_height": 4}, "g")


def test_what_is_no_graph_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="cannot be counted"):
        count_onnx(tmp_path / "x.onnx")


def test_external_data_is_never_opened(builtin_bundle: Bundle, tmp_path: Path) -> None:
    file = builtin_bundle.folder / "denoiser.onnx"
    (tmp_path / "denoiser.onnx").write_bytes(file.read_bytes())  # without denoiser.onnx.data
    assert count_onnx(tmp_path / "denoiser.onnx").flops == count_onnx(file).flops > 0


def test_every_operator_of_a_bundle_is_counted(builtin_bundle: Bundle) -> None:
    for graph in builtin_bundle.manifest.graphs:
        cost = count_onnx(builtin_bundle.file(graph.path))
        assert not cost.uncounted
        assert total(work for _, work in cost.by_kind().values()).flops == cost.flops > 0


def denoiser_products(config: Mapping[str, Any], side: int, text: int) -> int:
    """Multiply-adds of an MMDiT's products with weights, from its configuration (Esser et al. 2024, figure 2).

    Args:
        config: diffusers' transformer configuration.
        side: of the picture, in patches.
        text: tokens, null tokens folded to one.
    """
    channels = config["num_attention_heads"] * config["attention_head_dim"]
    image, patch = side * side, config["patch_size"] ** 2
    count = image * config["in_channels"] * patch * channels  # the patches' convolution
    count += text * config["joint_attention_dim"] * channels
    for layer in range(config["num_layers"]):
        last = layer == config["num_layers"] - 1
        count += 12 * image * channels**2  # q, k, v, out; two of four times the width
        count += (2 if last else 12) * text * channels**2  # the last block's text only gives keys and values
        count += (4 if layer in config["dual_attention_layers"] else 0) * image * channels**2
    return count + image * channels * config["out_channels"] * patch


def denoiser_attention(config: Mapping[str, Any], side: int, text: int) -> int:
    """Multiply-adds of its attention; the null token takes two more channels of each head's scores (restructure.attention)."""
    heads, width, image = config["num_attention_heads"], config["attention_head_dim"], side * side
    count = 0
    for layer in range(config["num_layers"]):
        queries = image if layer == config["num_layers"] - 1 else image + text
        count += heads * queries * (image + text) * (width + 2 + width)
        count += heads * image * image * 2 * width if layer in config["dual_attention_layers"] else 0
    return count


@pytest.mark.parametrize("name", ["builtin", "no qk_norm, no dual", "all dual, bf16"])
def test_the_denoiser_costs_what_its_configuration_says(name: str, students: dict[str, Student]) -> None:
    student = open_student(BUILTIN_STUDENT) if name == "builtin" else students[name]
    config, side, clip_tokens = student.configs["transformer"], 4, 16
    pixels = 8 * config["patch_size"] * side
    options = GraphOptions("native", pixels, pixels, (1000.0,), clip_tokens, keep_t5=False, max_sequence_length=16)
    spec = next(graph for graph in plan_graphs(student, options) if graph.name == "denoiser")
    traced, _ = clean_up(trace(spec, torch.float32), PassOptions(uniform("fp32")))
    groups: dict[str, int] = {}
    for operator in count_model(traced, {}, name):
        groups[operator.work.group] = groups.get(operator.work.group, 0) + operator.work.multiply_adds
    text = clip_tokens + 1
    assert groups["product"] + groups["convolution"] == denoiser_products(config, side, text)
    assert groups["attention"] == denoiser_attention(config, side, text)


def program(operations: list[Operation], inputs: list[Port]) -> Program:
    return Program("CoreML8", tuple(inputs), operations[-1].outputs, tuple(operations))


def port(name: str, *shape: int, dtype: str = "fp16") -> Port:
    return Port(name, BY_NAME[dtype], shape)


def stored(*shape: int, dtype: str = "fp16") -> Constant:
    def read() -> np.ndarray:
        raise AssertionError("a weight was read")

    return Constant(BY_NAME[dtype], shape, read)


def test_core_ml_reads_compressed_weights_compressed() -> None:
    parts = {"indices": (stored(6, 8, dtype="uint6"),), "lut": (stored(1, 1, 64, 1),)}
    table = Operation("constexpr_lut_to_dense", "w", parts, (port("w", 6, 8),))
    linear = Operation("linear", "y", {"x": ("x",), "weight": ("w",), "bias": (stored(6),)}, (port("y", 1, 3, 6),))
    operator = only(count_program(program([table, linear], [port("x", 1, 3, 8)])))
    assert (operator.arithmetic, operator.work.multiply_adds, operator.work.other_flops) == ("fp16", 3 * 8 * 6, 3 * 6)
    assert operator.work.weight_bytes == 6 * 8 * 6 // 8 + 2 * 64 + 2 * 6
    assert operator.work.activation_bytes == 2 * (3 * 8 + 3 * 6)


def test_core_ml_attention_and_transposed_products() -> None:
    parts = {name: (name,) for name in ("query", "key", "value")}
    attention = Operation("scaled_dot_product_attention", "a", parts, (port("a", 1, 2, 3, 4),))
    inputs = [port("query", 1, 2, 3, 4), port("key", 1, 2, 5, 4), port("value", 1, 2, 5, 4)]
    assert only(count_program(program([attention], inputs))).work.multiply_adds == 2 * 3 * 5 * (4 + 4)

    einsum = Operation("einsum", "e", {"values": ("v", "w")}, (port("e", 1, 4, 1, 3),))
    assert only(count_program(program([einsum], [port("v", 1, 4, 1, 5), port("w", 1, 5, 1, 3)]))).work.multiply_adds == 4 * 5 * 3

    yes = Operation(
        "const", "yes", {"val": (Constant(BY_NAME["bool"], (), lambda: np.array(True)),)}, (port("yes", dtype="bool"),)
    )
    product = Operation("matmul", "m", {"x": ("x",), "y": ("y",), "transpose_x": ("yes",)}, (port("m", 3, 5),))
    assert only(count_program(program([yes, product], [port("x", 4, 3), port("y", 4, 5)]))).work.multiply_adds == 3 * 4 * 5


def test_core_ml_convolution_in_fp32_says_so() -> None:
    parts = {"x": ("x",), "weight": (stored(8, 3, 3, 3),)}
    operation = Operation("conv", "c", parts, (port("c", 1, 8, 5, 6, dtype="fp32"),))
    operator = only(count_program(program([operation], [port("x", 1, 3, 5, 6)])))
    assert (operator.dtype, operator.work.multiply_adds) == ("fp32", 8 * 5 * 6 * 27)


def test_core_ml_names_what_it_cannot_count() -> None:
    operation = Operation("conv_transpose", "e", {"x": ("x",)}, (port("e", 2),))
    (operator,) = count_program(program([operation], [port("x", 2)]))
    assert operator.uncounted == "no counter knows it"
    assert operator.work.flops == 0
