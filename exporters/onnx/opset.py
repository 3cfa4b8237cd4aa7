"""Graphs for runtimes that are older than the operators that a trace uses.

Graphs are traced at opset 23, the first with RMSNormalization and Attention. At 21 the former is written out, as its
specification has it, and the latter is onnxruntime's own MultiHeadAttention (:class:`exporters.onnx.passes.RewriteAttention`); of
every other operator it is checked that 21 has it with the same inputs, attributes and types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from exporters.choices import TRACED, Opset
from exporters.errors import Complaint, ExportError
from exporters.onnx.weights import STAMP


class LowerOpset(InPlacePass):
    """The graph at an older opset.

    ::

        RMSNormalization(x, scale)        wide = Cast(x) to fp32, where x is not
                                          Div(wide, Sqrt(Add(ReduceMean(Pow(wide, 2)), epsilon))) -> Cast back -> Mul(scale)

    Exact in fp32, and in fp16 what ``stash_type`` promises: the norm is computed in fp32, the scale multiplies in the input's
    type. onnxruntime finds its SimplifiedLayerNormalization in these nodes. Does not fire on another ``stash_type`` or axis:
    such a norm is then refused, as every operator is that the opset does not have.

    Args:
        opset: the opset to reach.

    Raises:
        ExportError: an operator is there that the opset does not have, or not as it is used.
    """

    def __init__(self, opset: Opset) -> None:
        super().__init__()
        self.opset = opset

    def call(self, model: ir.Model) -> PassResult:
        for node in list(model.graph):
            if node.op_type == "RMSNormalization" and not node.domain and _is_last_axis(node):
                _write_out(model.graph, node)
        complaints = [complaint for node in model.graph.all_nodes() for complaint in _complaints(node, self.opset)]
        if complaints:
            raise ExportError(
                f"The graph cannot be made for opset {self.opset}.", list(dict.fromkeys(complaints)), f"--opset {TRACED}"
            )
        model.graph.opset_imports[""] = self.opset
        return PassResult(model, modified=True)


def _is_last_axis(node: ir.Node) -> bool:
    attributes: dict[str, int] = {name: attribute.value for name, attribute in node.attributes.items()}
    return attributes.get("axis", -1) == -1 and attributes.get("stash_type", 1) == ir.DataType.FLOAT


def _write_out(graph: ir.Graph, node: ir.Node) -> None:
    x, scale = node.inputs
    assert x is not None
    assert scale is not None
    assert x.dtype is not None, f"{node.name}: its input has no type"
    attribute = node.attributes.get("epsilon")
    epsilon = 1e-5 if attribute is None else attribute.as_float()
    nodes: list[ir.Node] = []

    def add(kind: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(kind, list(inputs), attributes, metadata_props={**node.metadata_props, STAMP: "LowerOpset"}))
        value = nodes[-1].outputs[0]
        value.type, value.shape = ir.TensorType(dtype), None if kind in ("ReduceMean", "Add", "Sqrt") else x.shape
        return value

    def constant(array: Any, name: str) -> ir.Value:
        tensor = ir.tensor(array)
        value = ir.Value(
            name=f"{node.outputs[0].name}.{name}",
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.initializers.add(value)
        return value

    half = x.dtype != ir.DataType.FLOAT
    wide = add("Cast", x, to=ir.DataType.FLOAT) if half else x
    square = add("Pow", wide, constant(np.float32(2), "two"))
    mean = add("ReduceMean", square, constant(np.array([-1], np.int64), "axes"), keepdims=1)
    root = add("Sqrt", add("Add", mean, constant(np.float32(epsilon), "epsilon")))
    normal = add("Div", wide, root)
    if half:
        normal = add("Cast", normal, to=x.dtype, dtype=x.dtype)
    scaled = add("Mul", normal, scale, dtype=x.dtype)
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [node.outputs[0]], [scaled])


def _complaints(node: ir.Node, opset: Opset) -> list[Complaint]:
    """Where the opset does not have an operator as it is used; other domains' have versions of their own."""
    if node.domain:
        return []
    name = f"{node.op_type} ({node.name})" if node.name else node.op_type
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        since = onnx.defs.get_schema(node.op_type, TRACED, "").since_version
        return [Complaint(node.op_type, "the operator is newer", f"one of opset {opset}", f"one of opset {since}")]
    complaints = [
        Complaint(name, f"the operator has no attribute {attribute} yet", f"opset {opset}")
        for attribute in node.attributes
        if attribute not in schema.attributes
    ]
    for i, value in enumerate(node.inputs):
        if value is None or value.dtype is None:
            continue
        formal = schema.inputs[min(i, len(schema.inputs) - 1)] if schema.inputs else None
        allowed = set() if formal is None else {str(kind) for kind in formal.types}
        if (kind := f"tensor({_NAMES.get(value.dtype, value.dtype.name.lower())})") not in allowed:
            complaints.append(Complaint(name, "the operator does not take this type yet", f"opset {opset}", kind))
    return complaints


_NAMES = {ir.DataType.FLOAT: "float"}
"""What schemas call types, where it is not what onnx-ir calls them."""
