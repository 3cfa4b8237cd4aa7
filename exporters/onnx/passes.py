"""What is done to a traced graph before it is written; the order is :func:`clean_up`'s literal list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import InPlacePass, PassError, PassResult, Sequential, common

from exporters.choices import TRACED, AttentionOperator, Opset
from exporters.onnx.opset import LowerOpset
from exporters.onnx.quantize import Kept, QuantizeWeights
from exporters.onnx.weights import STAMP, LazyWeight
from quantization.calibration import Calibration
from quantization.errors import InputError
from quantization.profile import Profile


@dataclass(frozen=True)
class PassOptions:
    """What the runtime of a tier wants.

    Attributes:
        profile: how weights are stored.
        attention: ``MultiHeadAttention`` (com.microsoft: onnxruntime's flash kernel on CPU, and the one on WebGPU) or
            ``Attention`` (ai.onnx 23).
        calibration: what is known of the weights, for schemes that make use of it.
        unalias_rows: pad feed-forward activations whose rows would fall on the same cache sets (CPUs).
        opset: which the graph is made for; 21 has no ai.onnx Attention, so that it takes the other kernel.
    """

    profile: Profile
    attention: AttentionOperator = "MultiHeadAttention"
    calibration: Calibration | None = None
    unalias_rows: bool = False
    opset: Opset = TRACED


def clean_up(model: ir.Model, options: PassOptions) -> tuple[ir.Model, list[Kept]]:
    """Run all passes over a traced model, in place; weights are not read.

    Returns:
        The model, and the weights that could not take the scheme that a rule gave them.

    Raises:
        InputError: a weight cannot be stored as a rule says, or an operator is newer than the opset.
    """
    quantize = QuantizeWeights(options.profile, options.calibration)
    older = options.opset != TRACED
    passes: list[InPlacePass | Callable[[ir.Model], PassResult]] = [
        FoldTransposedWeights(),  # before folding constants, which would read each weight to transpose it
        _FoldConstants(),  # shapes that the exporter computes node by node
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),  # one cast of the text states, not one for each block
        *([RewriteAttention()] if older or options.attention == "MultiHeadAttention" else []),
        quantize,  # before what is for floating-point weights only
        *([UnaliasRows()] if options.unalias_rows else []),
        StoreHalfWeights(options.profile),
        *([LowerOpset(options.opset)] if older else []),  # the last of what makes operators
        common.RemoveUnusedNodesPass(),  # what the rewrites left behind
        common.RemoveUnusedOpsetsPass(),
        common.NameFixPass(),  # unique names: external data and profiles are addressed by them
        common.TopologicalSortPass(),
        common.ClearMetadataAndDocStringPass(),  # stack traces of the trace, with this machine's paths
    ]
    try:
        return Sequential(*passes)(model).model, quantize.kept  # type: ignore[arg-type]
    except PassError as error:
        if isinstance(error.__cause__, InputError):  # what is wrong, and not which passes had run
            raise error.__cause__ from None
        raise


def simplify(model: ir.Model) -> ir.Model:
    """The first passes alone: a traced model without what tracing left behind, its operators and weights as they were traced."""
    passes = [
        FoldTransposedWeights(),
        _FoldConstants(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    ]
    return Sequential(*passes)(model).model


class _FoldConstants(InPlacePass):
    """onnxscript's constant folding, held to small tensors."""

    LIMIT_ELEMENTS = 4096

    def call(self, model: ir.Model) -> PassResult:
        modified = onnxscript.optimizer.fold_constants(
            model,
            onnx_shape_inference=False,
            input_size_limit=self.LIMIT_ELEMENTS,
            output_size_limit=self.LIMIT_ELEMENTS,
        ).modified
        return PassResult(model, bool(modified))


class FoldTransposedWeights(InPlacePass):
    """Store a linear layer's weight the way MatMul reads it.

    ::

        weight [out, in] -> Transpose -> MatMul        weight.T [in, out] -> MatMul

    Does not fire where the weight has another reader (a tied table), nor on anything but a two-dimensional weight.
    """

    def call(self, model: ir.Model) -> PassResult:
        modified = False
        for node in list(model.graph):
            source = node.inputs[0] if node.inputs else None
            if node.op_type != "Transpose" or node.domain or source is None or not isinstance(source.const_value, LazyWeight):
                continue
            if len(source.const_value.shape) != 2 or len(source.uses()) != 1 or source.is_graph_output():
                continue
            tensor = source.const_value.transpose()
            value = ir.Value(name=source.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            model.graph.remove(node, safe=True)
            assert source.name is not None
            del model.graph.initializers[source.name]
            model.graph.initializers.add(value)
            modified = True
        return PassResult(model, modified)


class RewriteAttention(InPlacePass):
    """ai.onnx Attention with packed heads becomes com.microsoft MultiHeadAttention.

    ::

        Attention(q, k, v[, mask]; q_num_heads, scale, is_causal)
        MultiHeadAttention(q, k, v, , , [attention_bias]; num_heads, scale, unidirectional)

    onnxruntime's CPU kernel for the former materialises the S x S scores; the latter's is a flash attention where there is
    no bias (``python -m benchmarks.studies.kernels`` measures both).
    """

    def call(self, model: ir.Model) -> PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "Attention" or node.domain:
                continue
            query, key, value, *rest = node.inputs
            bias = rest[0] if rest else None
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            new = ir.node(
                "MultiHeadAttention",
                inputs=[query, key, value, None, None, bias] if bias is not None else [query, key, value],
                attributes={
                    "num_heads": attributes["q_num_heads"],
                    "scale": attributes["scale"],
                    "unidirectional": attributes.get("is_causal", 0),
                },
                domain="com.microsoft",
                name=node.name,
                metadata_props={**node.metadata_props, STAMP: type(self).__name__},
            )
            new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], [node.outputs[0]], [new.outputs[0]])
            modified = True
        if modified:
            model.graph.opset_imports["com.microsoft"] = 1
        return PassResult(model, modified)


class UnaliasRows(InPlacePass):
    """Keep a feed-forward's hidden rows from falling on the same cache sets.

    ::

        x -> MatMul(W1 [in, h]) -> Add(b1 [h]) -> Gelu -> MatMul(W2 [h, out])
        x -> MatMul(W1 [in, h + 16]) -> Add(b1 [h + 16]) -> Gelu -> MatMul(W2 [h + 16, out])

    Exact: the new columns and biases are zero, GELU(0) is 0, and so are the new rows. Where ``h`` fp32 values are a multiple
    of 4096 bytes (6144 channels in SD3.5-Medium), every row of the second product's input starts on the same set of a CPU's
    first-level cache; 16 more channels cost 0.3 % of its operations and save 10 % of its time on x86
    (``python -m benchmarks.studies.kernels``). Does not fire elsewhere, nor where any of the values has another reader.
    """

    PAGE_BYTES, EXTRA = 4096, 16

    def call(self, model: ir.Model) -> PassResult:
        modified = False
        for gelu in list(model.graph):
            if gelu.op_type != "Gelu" or gelu.domain:
                continue
            parts = self._match(gelu)
            if parts is None or int(parts[0].shape[1]) * 4 % self.PAGE_BYTES:
                continue
            (first, bias, second), values = parts[:3], parts[3:]
            padded = (first.padded(0, self.EXTRA), bias.padded(self.EXTRA), second.padded(self.EXTRA, 0))
            for value, tensor in zip(values, padded, strict=True):
                value.const_value, value.shape = tensor, tensor.shape
            for node in (gelu, gelu.inputs[0].producer(), gelu.inputs[0].producer().inputs[0].producer()):  # type: ignore[union-attr]
                node.outputs[0].shape = None  # type: ignore[union-attr]
            modified = True
        return PassResult(model, modified)

    def _match(self, gelu: ir.Node) -> tuple[Any, ...] | None:
        """``(W1, b1, W2)`` and the values that hold them, where the four nodes are there and nothing else reads between."""
        add = gelu.inputs[0].producer() if gelu.inputs[0] is not None else None
        readers = gelu.outputs[0].consumers()
        if add is None or add.op_type != "Add" or len(readers) != 1 or readers[0].op_type != "MatMul":
            return None
        first = add.inputs[0].producer() if add.inputs[0] is not None else None
        if first is None or first.op_type != "MatMul" or any(len(node.outputs[0].uses()) != 1 for node in (first, add)):
            return None
        values = (first.inputs[1], add.inputs[1], readers[0].inputs[1])
        if any(v is None or not isinstance(v.const_value, LazyWeight) or len(v.uses()) != 1 for v in values):
            return None
        tensors = tuple(value.const_value for value in values)  # type: ignore[union-attr]
        return None if any(any(tensor.padding) for tensor in tensors) else (*tensors, *values)  # type: ignore[union-attr]


class StoreHalfWeights(InPlacePass):
    """Store matrices as fp16 beside a graph that computes in fp32.

    ::

        weight fp32 -> MatMul        weight fp16 -> Cast(fp32) -> MatMul

    onnxruntime folds the cast when it loads the graph. A CPU without fp16 arithmetic would cast every activation back and
    forth in an fp16 graph: no faster, less exact. Vectors (biases, norms) and constants stay fp32: they weigh nothing.

    Args:
        profile: weights that it stores as fp32 are left alone.
    """

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self.profile = profile

    def call(self, model: ir.Model) -> PassResult:
        modified = False
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if not isinstance(tensor, LazyWeight) or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
                continue
            if not (value.name or "").endswith(".weight"):  # a table or a constant, not a matrix
                continue
            if self.profile.scheme(tensor.weight.component, tensor.weight.name).name == "fp32":
                continue
            stored = ir.Value(
                name=f"{value.name}.fp16",
                shape=tensor.shape,
                type=ir.TensorType(ir.DataType.FLOAT16),
                const_value=tensor.stored_as(ir.DataType.FLOAT16),
            )
            cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, metadata_props={STAMP: type(self).__name__})
            cast.outputs[0].shape, cast.outputs[0].type = tensor.shape, ir.TensorType(ir.DataType.FLOAT)
            ir.convenience.replace_all_uses_with(value, cast.outputs[0])
            model.graph.insert_before(model.graph[0], cast)
            assert value.name is not None
            del model.graph.initializers[value.name]
            model.graph.initializers.add(stored)
            modified = True
        return PassResult(model, modified)
