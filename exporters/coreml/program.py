"""A traced graph as one Core ML program, or as several stages that run one after another.

Programs compute in fp16, but for the nodes that are named ``wide``: those whose values come too near to fp16's 65504, as
:mod:`exporters.coreml.rehearsal` has measured; and what leads from an input to a sine or to an integer, where fp16 has too few
digits. Inputs and outputs are fp32, token ids int32 (in the layout ``swift`` they come as numbers).

Stages cut the graph where the fewest values cross, near equal shares of the weights: Core ML's Neural Engine compiler fails on
one program of 24 MMDiT blocks and takes six of four (MobileDiffuser's finding).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.choices import AttentionForm, Compute, System
from exporters.coreml.backend import Function, Program, Var, ct, mb, types
from exporters.coreml.channels_first import ChannelsFirst
from exporters.coreml.constants import Constants
from exporters.coreml.lower import Lowering
from exporters.errors import Complaint, ExportError
from exporters.onnx.weights import LazyWeight
from quantization.calibration import Calibration
from quantization.profile import Profile

LOWERINGS: dict[AttentionForm, type[Lowering]] = {"fused": Lowering, "split-einsum": ChannelsFirst}
NEAR = 0.35  # of a stage's share of the weights: how far a cut may move for fewer values to cross it


@dataclass(frozen=True)
class About:
    """What a package says of itself, as Xcode shows it.

    Attributes:
        description: of the bundle that it is part of.
        licence: of the student.
        facts: more, by name.
    """

    description: str = ""
    licence: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProgramOptions:
    """How a Core ML program is made.

    Attributes:
        profile: how weights are stored.
        compute: what programs compute in.
        system: the oldest that must run them.
        calibration: what is known of the weights, for schemes that make use of it.
        stages: how many programs the graph becomes.
        attention: one operation for all heads, which GPUs have; or an einsum for each head and all tokens in the Neural Engine's
            layout (:mod:`exporters.coreml.channels_first`).
        about: what packages say of themselves.
    """

    profile: Profile
    compute: Compute = "fp16"
    system: System = "iOS18"
    calibration: Calibration | None = None
    stages: int = 1
    attention: AttentionForm = "fused"
    about: About = field(default_factory=About)


@dataclass(frozen=True)
class ProgramPort:
    """One input or output of a program: a name, a type (``float32``, ``int32``) and a shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StageProgram:
    """One program, ready to be written.

    Attributes:
        program: coremltools' program; its weights are placeholders.
        constants: how to read them.
        inputs: what it takes.
        outputs: what it returns.
        wide: names of the operators that compute in fp32 in an fp16 program.
        system: the oldest that runs it.
        origins: by the name of each of its values, the node that it was made for.
        readers: by the name of a value that stands for one of the graph's, the nodes that read that.
    """

    program: Program
    constants: Constants
    inputs: tuple[ProgramPort, ...]
    outputs: tuple[ProgramPort, ...]
    wide: tuple[str, ...]
    system: System
    origins: dict[str, ir.Node]
    readers: dict[str, tuple[ir.Node, ...]]

    @property
    def stored(self) -> dict[str, int]:
        """Bytes of each weight, without padding, by what programs of several sizes have in common: name, shape and bits."""
        names = self.constants.loads
        operations = self.program.functions["main"].operations
        variables = [op.outputs[0] for op in operations if op.op_type == "const" and op.outputs[0].name in names]
        return {
            f"{var.name} {list(var.shape)} {_bits(var)}": -(-int(np.prod(var.shape, dtype=np.int64)) * _bits(var) // 8)
            for var in variables
        }


def to_programs(model: ir.Model, options: ProgramOptions, wide: Collection[ir.Node] = ()) -> list[StageProgram]:
    """Lower a traced, simplified model (:func:`exporters.onnx.passes.simplify`) whose shapes are all known.

    Args:
        model: it stays as it is.
        options: what the target wants.
        wide: nodes of the model that compute in fp32.

    Raises:
        ExportError: an operator has no form, a shape is not known, or there are more stages than places to cut.
    """
    for port in model.graph.inputs:
        if any(not isinstance(size, int) for size in port.shape or ()):
            complaint = Complaint(str(port.name), "has a dynamic size", "a fixed one", str(port.shape))
            raise ExportError("The graph cannot become a Core ML program.", [complaint], "build without --dynamic")
    nodes = list(model.graph)
    wide = {*wide, *_digits(nodes), *_ruled(nodes, options.profile)} if options.compute == "fp16" else set(nodes)
    stages = list(_stages(model, nodes, options.stages))
    names = _crossing_names(model, stages)
    ports = {value: _port(value, names[value]) for value in model.graph.inputs}
    return [_program(stage, options, wide, names, ports) for stage in stages]


def _ruled(nodes: list[ir.Node], profile: Profile) -> set[ir.Node]:
    """The nodes that read a matrix which a rule stores as fp32: they compute in it."""
    weights = {node: [value.const_value for value in node.inputs if value is not None] for node in nodes}
    return {
        node
        for node, tensors in weights.items()
        for tensor in tensors
        if isinstance(tensor, LazyWeight) and tensor.weight.name and len(tensor.weight.shape) > 1
        if profile.scheme(tensor.weight.component, tensor.weight.name).name == "fp32"
    }


def _digits(nodes: list[ir.Node]) -> set[ir.Node]:
    """Nodes that need more digits than fp16 has: token ids that come as numbers reach 49408, and fp16 counts to 2048."""
    needed: set[ir.Node] = set()
    for node in reversed(nodes):
        counts = node.op_type == "Cast" and _is_float(node.inputs[0]) and not _is_float(node.outputs[0])
        if counts or any(reader in needed for value in node.outputs for reader in value.consumers()):
            needed.add(node)
    return {node for node in needed if node.op_type != "Constant"}


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


@dataclass(frozen=True)
class _Stage:
    nodes: list[ir.Node]
    inputs: list[ir.Value]
    outputs: list[ir.Value]


def _program(
    stage: _Stage,
    options: ProgramOptions,
    wide: set[ir.Node],
    names: Mapping[ir.Value, str],
    ports: dict[ir.Value, ProgramPort],
) -> StageProgram:
    """Lower one stage; ``ports`` are of what there is before it, and gain what it makes."""
    constants = Constants(options.profile, options.system, options.calibration)
    inputs = tuple(ports[value] for value in stage.inputs)
    for value in (*stage.inputs, *stage.outputs):
        constants.name(names[value])  # no constant may take it
    mb.name_count.clear()  # coremltools numbers unnamed operations on and on: equal graphs shall be equal programs
    program = Program()
    placeholders = {p.name: mb.placeholder(p.shape, types.int32 if p.dtype == "int32" else types.fp32) for p in inputs}
    with Function(placeholders, opset_version=getattr(ct.target, options.system)) as function:
        lowering = LOWERINGS[options.attention](constants, options.system, options.compute == "fp32", {})
        for value, port in zip(stage.inputs, inputs, strict=True):
            lowering.receive(value, function.inputs[port.name])
            if not value.uses():  # a client feeds it all the same
                mb.identity(x=function.inputs[port.name])
        origins: dict[str, ir.Node] = {}
        for node in stage.nodes:
            lowering.wide = node in wide
            before = function.operations.end
            lowering.lower(node)
            origins |= {var.name: node for operation in _since(function, before) for var in operation.outputs}
        operands = [lowering.lowered(value) if value.is_graph_output() else lowering.handed_on(value) for value in stage.outputs]
        results = [_result(var, names[value]) for var, value in zip(operands, stage.outputs, strict=True)]
        function.set_outputs(results)
    outputs = tuple(ProgramPort(var.name, "float32", tuple(var.shape)) for var in results)
    ports |= dict(zip(stage.outputs, outputs, strict=True))
    program.add_function("main", function)
    exact = tuple(str(node.name) for node in stage.nodes if node in wide) if options.compute == "fp16" else ()
    readers: dict[str, tuple[ir.Node, ...]] = {}
    for value, became in lowering.forms():
        if not isinstance(became, np.ndarray):  # two values are one where a product has taken its bias
            readers[became.name] = (*readers.get(became.name, ()), *value.consumers())
    return StageProgram(program, constants, inputs, outputs, exact, options.system, origins, readers)


def _since(function: Any, before: Any) -> Iterator[Any]:
    """A function's operations behind one of its list's nodes, the newest first; all of them behind none."""
    node = function.operations.end
    while node is not before:
        yield node.op
        node = node.prev


def _bits(var: Var) -> int:
    width: int = var.dtype.get_bitwidth()
    return width


def _result(value: Any, name: str) -> Var:
    assert types.is_float(value.dtype), f"{name}: programs return numbers"
    return mb.identity(x=value, name=name) if value.dtype == types.fp32 else mb.cast(x=value, dtype="fp32", name=name)


def _port(value: ir.Value, name: str) -> ProgramPort:
    assert value.shape is not None
    assert value.dtype is not None
    return ProgramPort(name, "float32" if value.dtype.is_floating_point() else "int32", tuple(value.shape.numpy()))


def _crossing_names(model: ir.Model, stages: list[_Stage]) -> dict[ir.Value, str]:
    """The graph's own names for its inputs and outputs; ``stage_I_N`` for what stage I hands on."""
    names = {value: str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)}
    for i, stage in enumerate(stages):
        for value in stage.outputs:
            names.setdefault(value, f"stage_{i + 1}_{sum(name.startswith(f'stage_{i + 1}_') for name in names.values())}")
    return names


def _stages(model: ir.Model, nodes: list[ir.Node], count: int) -> Iterator[_Stage]:
    cuts = [0, *_cuts(model, nodes, count), len(nodes)]
    position = {node: i for i, node in enumerate(nodes)}
    place = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    last = {value: max(position[node] for node in value.consumers()) for value in place if value.consumers()}
    final = list(model.graph.outputs)
    for begin, end in itertools.pairwise(cuts):
        part = nodes[begin:end]
        read = dict.fromkeys(value for node in part for value in node.inputs if value is not None)
        given = [value for value in model.graph.inputs if value in read or (begin == 0 and not value.uses())]
        inputs = given + [value for value in read if place.get(value, end) < begin]
        produced = [value for node in part for value in node.outputs]
        outputs = [value for value in produced if value in final or last.get(value, -1) >= end]
        yield _Stage(
            part, [value for value in inputs if not _is_constant(value)], [value for value in outputs if not _is_constant(value)]
        )


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"


def _cuts(model: ir.Model, nodes: list[ir.Node], count: int) -> list[int]:
    """Positions to cut at: of those near each equal share of the weights, the one that fewest numbers cross."""
    if count == 1:
        return []
    position = {node: i for i, node in enumerate(nodes)}
    weights = np.cumsum([_weight_elements(node) for node in nodes])
    crossing = np.zeros(len(nodes) + 1)
    for value, i in ((value, i) for node, i in position.items() for value in node.outputs):
        readers = [position[node] for node in value.consumers()]
        if readers and not _is_constant(value):
            unknown = value.shape is None  # within a kernel, as a rule: no place to cut
            crossing[i + 1 : max(readers) + 1] += np.inf if unknown else float(np.prod(value.shape.numpy()))  # type: ignore[union-attr]
    cuts: list[int] = []
    for stage in range(1, count):
        share = weights[-1] / count
        near = [
            i
            for i in range((cuts[-1] if cuts else 0) + 1, len(nodes))
            if abs(weights[i - 1] - stage * share) <= NEAR * share and weights[i - 1] < weights[-1]
        ]
        if not near:
            complaint = Complaint("--stages", "more than there are places to cut", got=str(count))
            raise ExportError("The denoiser cannot be cut.", [complaint], "ask for fewer stages")
        cuts.append(min(near, key=lambda i: (crossing[i], abs(weights[i - 1] - stage * share))))
    return cuts


def _weight_elements(node: ir.Node) -> int:
    tensors = [value.const_value for value in node.inputs if value is not None]
    return sum(tensor.weight.elements for tensor in tensors if isinstance(tensor, LazyWeight))
