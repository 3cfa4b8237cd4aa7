"""What a Core ML package costs, operator by operator, from its program; its weight file is mapped and not read.

Weights that are stored compressed are read compressed: from iOS 17 on they are decompressed when they are needed. The Neural
Engine does so; a GPU may unfold a look-up table when a model is loaded, and then reads more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.forecast.cost import PER_ELEMENT, Arithmetic, GraphCost, Operator, Work
from exporters.coreml.evaluate import Program, open_package
from exporters.coreml.evaluate.dtypes import DType
from exporters.coreml.evaluate.program import Constant, Operation, Port

Shape = tuple[int, ...]


def count_packages(name: str, folders: list[Path], function: str = "main") -> GraphCost:
    """Count a graph that is one ``.mlpackage`` or a chain of them.

    Raises:
        ExportError: a package is damaged, or holds operations that the evaluator does not know.
    """
    return GraphCost(name, tuple(operator for folder in folders for operator in count_program(open_package(folder, function))))


def count_program(program: Program) -> list[Operator]:
    """Count a program."""
    values = _Values(program)
    return [_count(operation, values) for operation in program.operations if not operation.is_constant]


class _Unknown(Exception):  # noqa: N818 - a value with a reason, caught in this module
    """An operation cannot be counted, and why."""


class _Values:
    """Shapes of everything that a program names, and the bytes of its constants as they are stored."""

    def __init__(self, program: Program) -> None:
        self._ports = {port.name: port for port in program.inputs}
        self._stored: dict[str, int] = {}
        self._plain: dict[str, Constant] = {}
        for operation in program.operations:
            self._ports |= {port.name: port for port in operation.outputs}
            if operation.is_constant:
                self._stored |= {port.name: self._constant_bytes(operation) for port in operation.outputs}
            if operation.kind == "const" and isinstance(value := operation.arguments["val"][0], Constant):
                self._plain[operation.outputs[0].name] = value

    def _constant_bytes(self, operation: Operation) -> int:
        parts = [part for bound in operation.arguments.values() for part in bound]
        return sum(
            self._stored.get(part, 0) if isinstance(part, str) else part.dtype.size_bytes(math.prod(part.shape)) for part in parts
        )

    def shape(self, bound: str | Constant) -> Shape:
        """The shape of an argument."""
        return _shape(self._ports[bound]) if isinstance(bound, str) else bound.shape

    def plain(self, bound: str | Constant) -> Constant | None:
        """A constant that is stored as it is."""
        return self._plain.get(bound) if isinstance(bound, str) else bound

    def dtype(self, bound: str | Constant) -> DType:
        """Element type of an argument."""
        return self._ports[bound].dtype if isinstance(bound, str) else bound.dtype

    def full_bytes(self, bound: str | Constant) -> int:
        """The bytes of an argument, not compressed."""
        return self.dtype(bound).size_bytes(math.prod(self.shape(bound)))

    def constant(self, bound: str | Constant) -> bool:
        """Whether an argument does not change from run to run."""
        return isinstance(bound, Constant) or bound in self._stored

    def read_bytes(self, bound: str | Constant) -> int:
        """What reading an argument moves."""
        if isinstance(bound, Constant):
            return bound.dtype.size_bytes(math.prod(bound.shape))
        return self._stored[bound] if bound in self._stored else _bytes(self._ports[bound])


def _shape(port: Port) -> Shape:
    if any(size is None for size in port.shape):
        raise _Unknown(f"the shape of {port.name} is not known")
    return tuple(size or 0 for size in port.shape)


def _bytes(port: Port) -> int:
    return port.dtype.size_bytes(math.prod(_shape(port)))


class _Node:
    """An operation whose shapes are known."""

    def __init__(self, operation: Operation, values: _Values) -> None:
        self.operation, self._values = operation, values

    def shape(self, parameter: str) -> Shape:
        """The shape of an argument."""
        if parameter not in self.operation.arguments:
            raise _Unknown(f"it has no {parameter}")
        return self._values.shape(self.operation.arguments[parameter][0])

    def flag(self, parameter: str) -> bool:
        """A boolean argument; false where it is not given."""
        bound = self.operation.arguments.get(parameter)
        constant = None if bound is None else self._values.plain(bound[0])
        return constant is not None and bool(constant.read())

    def has(self, parameter: str) -> bool:
        """Whether an argument is given."""
        return parameter in self.operation.arguments

    def out(self) -> Shape:
        """Shape of the first result."""
        return _shape(self.operation.outputs[0])

    def _bound(self) -> list[str | Constant]:
        """Arguments that hold numbers to compute with; sizes, axes and names are no weights."""
        bound = [part for parts in self.operation.arguments.values() for part in parts]
        return [part for part in bound if not self._values.constant(part) or self._values.dtype(part).kind == "float"]

    def weight_bytes(self) -> int:
        """The bytes of the constants among the arguments, as they are stored."""
        return sum(self._values.read_bytes(part) for part in self._bound() if self._values.constant(part))

    def activation_bytes(self) -> int:
        """The bytes of the other arguments and of the results."""
        taken = sum(self._values.read_bytes(part) for part in self._bound() if not self._values.constant(part))
        return taken + sum(map(_bytes, self.operation.outputs))

    def result_bytes(self) -> int:
        """The bytes of the results."""
        return sum(map(_bytes, self.operation.outputs))

    def table_is_constant(self) -> bool:
        """Whether ``x`` is a constant."""
        return self._values.constant(self.operation.arguments["x"][0])

    def table_share(self) -> float:
        """Stored bytes of ``x`` over its bytes as its type says."""
        bound = self.operation.arguments["x"][0]
        return self._values.read_bytes(bound) / max(1, self._values.full_bytes(bound))


def _work(group: Any, node: _Node, multiply_adds: int = 0, other: int = 0) -> Work:
    return Work(group, multiply_adds, other, node.weight_bytes(), node.activation_bytes())


def _linear(node: _Node) -> Work:
    results = math.prod(node.out())
    return _work("product", node, results * node.shape("x")[-1], results if node.has("bias") else 0)


def _matmul(node: _Node) -> Work:
    inner = node.shape("x")[-2 if node.flag("transpose_x") else -1]
    return _work("product", node, math.prod(node.out()) * inner)


def _conv(node: _Node) -> Work:
    results = math.prod(node.out())  # weight: [out, in / groups, *kernel]
    return _work("convolution", node, results * math.prod(node.shape("weight")[1:]), results if node.has("bias") else 0)


def _attention(node: _Node) -> Work:
    *batch, queries, channels = node.shape("query")
    scores = math.prod(batch) * queries * node.shape("key")[-2]
    other = scores * (PER_ELEMENT["softmax"] + 1 + node.has("attn_mask"))
    return _work("attention", node, scores * (channels + node.shape("value")[-1]), other)


def _einsum(node: _Node) -> Work:
    """``nchw,nwhu->nchu``: the form of attention's products, the only one that MIL has."""
    return _work("attention", node, math.prod(node.out()) * node.shape("values")[-1])


def _elementwise(what: str, of_input: bool = False) -> Callable[[_Node], Work]:
    def count(node: _Node) -> Work:
        elements = math.prod(node.shape("x") if of_input else node.out())
        return _work("elementwise", node, 0, PER_ELEMENT[what] * elements)

    return count


def _movement(node: _Node) -> Work:
    return _work("movement", node)


def _part(node: _Node) -> Work:
    """Reads of its first argument only what it writes: a slice, rows of a table."""
    results = node.result_bytes()
    if node.table_is_constant():
        return Work("movement", 0, 0, round(results * node.table_share()), results)
    return Work("movement", 0, 0, 0, 2 * results)


_ONE = (
    "add sub mul real_div floor_div mod pow maximum minimum abs neg square sqrt rsqrt inverse exp exp2 log erf tanh sin cos ceil "
    "floor round sign clip relu leaky_relu equal not_equal greater greater_equal less less_equal logical_and logical_or "
    "logical_not logical_xor batch_norm"
)
_REDUCTIONS = (
    "reduce_mean reduce_sum reduce_max reduce_min reduce_prod reduce_sum_square reduce_l1_norm reduce_l2_norm reduce_argmax "
    "reduce_argmin cumsum"
)
_MOVEMENTS = (
    "transpose concat stack pad cast tile split fill fill_like range_1d reverse upsample_nearest_neighbor "
    "resize_nearest_neighbor upsample_bilinear pixel_shuffle pixel_unshuffle slice_update band_part"
)
_COUNTERS: dict[str, Callable[[_Node], Work]] = {
    "linear": _linear,
    "matmul": _matmul,
    "conv": _conv,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    **dict.fromkeys(_ONE.split(), _elementwise("one")),
    **dict.fromkeys(_REDUCTIONS.split(), _elementwise("one", of_input=True)),
    "select": _elementwise("select"),
    "sigmoid": _elementwise("sigmoid"),
    "silu": _elementwise("silu"),
    "gelu": _elementwise("gelu"),
    "softmax": _elementwise("softmax"),
    **dict.fromkeys(("layer_norm", "instance_norm"), _elementwise("layer norm")),
    "l2_norm": _elementwise("rms norm"),
    **dict.fromkeys(_MOVEMENTS.split(), _movement),
    **dict.fromkeys(("gather", "gather_along_axis", "gather_nd", "slice_by_index", "slice_by_size"), _part),
    **dict.fromkeys(("reshape", "expand_dims", "squeeze", "identity", "shape"), lambda node: Work("view")),
}


def _count(operation: Operation, values: _Values) -> Operator:
    name = operation.outputs[0].dtype.name
    dtype: Arithmetic = "fp16" if name == "fp16" else "fp32" if name == "fp32" else "integer"
    counter = _COUNTERS.get(operation.kind)
    if counter is None:
        return Operator(operation.kind, operation.name, Work("uncounted"), dtype, dtype, "no counter knows it")
    try:
        work = counter(_Node(operation, values))
    except _Unknown as reason:
        return Operator(operation.kind, operation.name, Work("uncounted"), dtype, dtype, str(reason))
    return Operator(operation.kind, operation.name, work, dtype, dtype)
