"""What an ONNX file costs, operator by operator; external data stays unopened.

Shapes come from onnxruntime's symbolic shape inference, which knows the ``com.microsoft`` operators. Sizes that a graph leaves
open (``batch``, ``latent_height``) are given by name.

What depends on constants only is left out: onnxruntime computes it when it loads the graph, so that a product whose fp16 weight
is cast to fp32 reads fp32. ``DequantizeLinear`` alone stays: onnxruntime runs it every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from benchmarks.forecast.cost import PER_ELEMENT, Arithmetic, GraphCost, Operator, Work
from exporters.errors import Complaint, ExportError
from exporters.onnx.passes import RewriteAttention


def count_onnx(file: Path | str, sizes: Mapping[str, int] | None = None) -> GraphCost:
    """Count a graph.

    Args:
        file: the ``.onnx`` file; its external data need not be there.
        sizes: of dimensions that the graph leaves open, by name.

    Returns:
        Its operators; the graph's name is the file's, or its folder's where that is ``model.onnx``.

    Raises:
        ExportError: it is no ONNX file, leaves a size open that is not given, or its shapes do not fit one another.
    """
    file = Path(file)
    try:
        model = ir.load(file)
    except Exception as error:  # protobuf's exceptions and onnx_ir's share no base class but this one
        raise _unusable(file, str(error)) from error
    name = file.parent.name if file.stem == "model" else file.stem
    return GraphCost(name, tuple(count_model(model, sizes or {}, str(file))))


def count_model(model: ir.Model, sizes: Mapping[str, int], where: str) -> list[Operator]:
    """Count a model that is in memory; its initializers may be without values. The model is changed."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    RewriteAttention()(model)  # the shape inference takes ai.onnx's Attention for com.microsoft's of that name
    weights = _weights_as_inputs(model)
    _close_sizes(model, sizes, where)
    constants = {name for name, value in model.graph.initializers.items() if value.const_value is not None} | weights
    graph = _with_shapes(model, where).graph
    operators = []
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        if node.op_type != "DequantizeLinear" and given and all(value.name in constants for value in given):
            constants |= {value.name for value in node.outputs if value.name is not None}
            continue
        operators.append(_count(node, constants))
    return operators


def _weights_as_inputs(model: ir.Model) -> set[str]:
    """Turn initializers outside of the file into inputs, so that nothing reaches for their values; returns their names."""
    names = set()
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
            continue
        del model.graph.initializers[name]
        value.const_value, value.shape, value.type = None, tensor.shape, ir.TensorType(tensor.dtype)  # type: ignore[assignment]
        model.graph.inputs.append(value)
        names.add(name)
    return names


def _close_sizes(model: ir.Model, sizes: Mapping[str, int], where: str) -> None:
    """Give every input its sizes, and forget what was known of the results: some of it is symbolic."""
    missing: dict[str, str] = {}
    for value in model.graph.inputs:
        if value.shape is None:
            raise _unusable(Path(where), f"input {value.name} has no shape")
        closed = []
        for size in value.shape:
            closed_size = size if isinstance(size, int) else sizes.get(str(size.value), 0)
            if not closed_size:
                missing[str(size)] = str(value.name)
            closed.append(closed_size)
        value.shape = ir.Shape(closed)
    if missing:
        complaints = [
            Complaint(f"{where}: {name}", "leaves a size open", "a number for it", size) for size, name in missing.items()
        ]
        raise ExportError("The graph cannot be counted.", complaints, "give the sizes")
    for node in model.graph:
        for result in node.outputs:
            result.shape = None


def _with_shapes(model: ir.Model, where: str) -> ir.Model:
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    try:
        inferred = SymbolicShapeInference.infer_shapes(ir.to_proto(model), auto_merge=True, verbose=0)
    except Exception as error:  # bare exceptions and assertions
        raise _unusable(Path(where), f"its shapes cannot be inferred: {str(error) or type(error).__name__}") from error
    if inferred is None:
        raise _unusable(Path(where), "its shapes cannot be inferred")
    shaped: ir.Model = ir.from_proto(inferred)
    return shaped


def _unusable(file: Path, problem: str) -> ExportError:
    complaint = Complaint(str(file), (problem.splitlines() or [""])[0])
    return ExportError("The graph cannot be counted.", [complaint], "run `flash-deploy verify` on its bundle")


class _Unknown(Exception):  # noqa: N818 - a value with a reason, caught in this module
    """An operator cannot be counted, and why."""


class _Node:
    """A node whose shapes are known.

    Args:
        node: the node.
        constants: names of values that do not change from run to run.
    """

    def __init__(self, node: ir.Node, constants: set[str]) -> None:
        self.node, self._constants = node, constants

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an input."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise _Unknown(f"input {index} is not there")
        return _shape(value)

    def out(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return _shape(self.node.outputs[0])

    def attribute(self, name: str, default: int) -> int:
        """An integer attribute."""
        attr = self.node.attributes.get(name)
        return default if attr is None else int(attr.as_int())

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def weight_bytes(self) -> int:
        """The bytes of the constants among the inputs."""
        return sum(_bytes(value) for value in self.node.inputs if value is not None and value.name in self._constants)

    def activation_bytes(self) -> int:
        """The bytes of the other inputs and of the results."""
        taken = [value for value in self.node.inputs if value is not None and value.name not in self._constants]
        return sum(map(_bytes, taken)) + sum(_bytes(value) for value in self.node.outputs if value.name)


def _shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        raise _Unknown(f"the shape of {value.name} is not known")
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def _bytes(value: ir.Value) -> int:
    if value.dtype is None:
        raise _Unknown(f"the type of {value.name} is not known")
    return math.prod(_shape(value)) * value.dtype.bitwidth // 8


def _matmul(node: _Node) -> int:
    return math.prod(node.out()) * node.shape(0)[-1]


def _gemm(node: _Node) -> int:
    return math.prod(node.out()) * node.shape(0)[0 if node.attribute("transA", 0) else 1]


def _matmul_blocks(node: _Node) -> int:
    return math.prod(node.out()) * node.attribute("K", 0)


def _conv(node: _Node) -> int:
    return math.prod(node.out()) * math.prod(node.shape(1)[1:])  # weight: [out, in / groups, *kernel]


def _conv_transpose(node: _Node) -> int:
    return math.prod(node.shape(0)) * math.prod(node.shape(1)[1:])  # weight: [in, out / groups, *kernel]


def _attention(node: _Node) -> Work:
    """Packed heads; causal attention counts whole, as kernels compute it."""
    (batch, queries, width), heads = node.shape(0), node.attribute("num_heads", 1)
    if len(node.shape(1)) != 3:
        raise _Unknown("a packed form of attention")
    scores = batch * heads * queries * node.shape(1)[1]
    multiply_adds = batch * queries * node.shape(1)[1] * (width + node.shape(2)[2])
    other = scores * (PER_ELEMENT["softmax"] + 1)  # and the scale
    return Work("attention", multiply_adds, other, node.weight_bytes(), node.activation_bytes())


def _product(group: Any, multiply_adds: Callable[[_Node], int], bias: int | None = None) -> Callable[[_Node], Work]:
    def count(node: _Node) -> Work:
        other = math.prod(node.out()) if bias is not None and node.has(bias) else 0
        return Work(group, multiply_adds(node), other, node.weight_bytes(), node.activation_bytes())

    return count


def _elementwise(what: str, of_input: bool = False) -> Callable[[_Node], Work]:
    """So many operations for each element of the result, or of the first input where the result is smaller."""

    def count(node: _Node) -> Work:
        elements = math.prod(node.shape(0) if of_input else node.out())
        return Work("elementwise", 0, PER_ELEMENT[what] * elements, node.weight_bytes(), node.activation_bytes())

    return count


def _sum(node: _Node) -> Work:
    """Any number of inputs, added or compared."""
    operands = sum(value is not None for value in node.node.inputs)
    return Work("elementwise", 0, (operands - 1) * math.prod(node.out()), node.weight_bytes(), node.activation_bytes())


def _movement(node: _Node) -> Work:
    return Work("movement", 0, 0, node.weight_bytes(), node.activation_bytes())


def _part(node: _Node) -> Work:
    """Reads of its first input only what it writes: a slice, rows of a table."""
    results = sum(_bytes(value) for value in node.node.outputs if value.name)
    table = node.node.inputs[0]
    assert table is not None
    constant = table.name in node._constants  # noqa: SLF001 - this module's own
    return Work("movement", 0, 0, results if constant else 0, results if constant else 2 * results)


def _view(node: _Node) -> Work:
    return Work("view")


_ONE = (
    "Add Sub Mul Div Pow Mod Neg Abs Sqrt Reciprocal Exp Log Erf Tanh Sin Cos Relu LeakyRelu Clip Floor Ceil Round Sign "
    "Equal Greater GreaterOrEqual Less LessOrEqual And Or Not Xor IsNaN IsInf"
)
_REDUCTIONS = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL2 ReduceSumSquare ArgMax ArgMin CumSum"
_MOVEMENTS = (
    "Transpose Concat Pad Resize Cast CastLike Expand Tile Split ConstantOfShape Range ScatterND DepthToSpace SpaceToDepth"
)
_COUNTERS: dict[str, Callable[[_Node], Work]] = {
    "MatMul": _product("product", _matmul),
    "Gemm": _product("product", _gemm, bias=2),
    "MatMulInteger": _product("product", _matmul),
    "com.microsoft::MatMulNBits": _product("product", _matmul_blocks, bias=5),
    "Conv": _product("convolution", _conv, bias=2),
    "ConvTranspose": _product("convolution", _conv_transpose, bias=2),
    "com.microsoft::MultiHeadAttention": _attention,
    **dict.fromkeys(_ONE.split(), _elementwise("one")),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), _sum),
    **dict.fromkeys(_REDUCTIONS.split(), _elementwise("one", of_input=True)),
    "Where": _elementwise("select"),
    "Sigmoid": _elementwise("sigmoid"),
    "Gelu": _elementwise("gelu"),
    "com.microsoft::Gelu": _elementwise("gelu"),
    "com.microsoft::FastGelu": _elementwise("gelu"),
    "com.microsoft::QuickGelu": _elementwise("silu"),
    "Swish": _elementwise("silu"),
    "Softmax": _elementwise("softmax"),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization"), _elementwise("layer norm")),
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization"), _elementwise("rms norm")),
    "QuantizeLinear": _elementwise("quantize"),
    "DynamicQuantizeLinear": _elementwise("quantize"),
    "DequantizeLinear": _elementwise("dequantize"),
    **dict.fromkeys(_MOVEMENTS.split(), _movement),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Slice"), _part),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size"), _view),
}


def _count(node: ir.Node, constants: set[str]) -> Operator:
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    label = node.name or str(node.outputs[0].name)
    counter = _COUNTERS.get(kind)
    dtype = _dtype(node.outputs[0].dtype)
    if counter is None:
        return Operator(node.op_type, label, Work("uncounted"), dtype, dtype, "no counter knows it")
    try:
        work = counter(_Node(node, constants))
    except _Unknown as reason:
        return Operator(node.op_type, label, Work("uncounted"), dtype, dtype, str(reason))
    return Operator(node.op_type, label, work, _arithmetic(node, dtype), dtype)


def _arithmetic(node: ir.Node, dtype: Arithmetic) -> Arithmetic:
    if node.op_type == "MatMulInteger":
        return "w8a8"
    if node.op_type == "MatMulNBits":
        return "blocks8" if node.attributes["bits"].as_int() == 8 else "blocks4"
    return dtype


def _dtype(dtype: ir.DataType | None) -> Arithmetic:
    if dtype == ir.DataType.FLOAT:
        return "fp32"
    return "fp16" if dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else "integer"
