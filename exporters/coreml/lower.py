"""Operators of a traced graph as MIL operations: one function each, chosen so that fp16 arithmetic stays right.

What Core ML's own converter would make of these operators loses its value in fp16 without a word: an RMS norm's squares overflow
from 256 on, a group norm's from about 60 standard deviations (finite results, 10 to 30 dB). Here instead::

    RMSNormalization(x)     layer_norm(concat[x, -x])[: n] * scale     mean 0, so the variance is the mean square
    GroupNormalization(x)   layer_norm(reshape[x, groups, -1]) * scale + bias
    Attention(q, k, v)      scaled_dot_product_attention (iOS 18), or matmul, softmax, matmul (iOS 17)

``layer_norm`` and ``softmax`` are single operations, which devices compute in wide arithmetic inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.choices import System
from exporters.coreml.backend import mb, types
from exporters.coreml.constants import Constants
from exporters.errors import Complaint, ExportError
from exporters.onnx.weights import LazyWeight

Operand = Any  # coremltools' Var, or an array where the value is known; coremltools has no types
MASKED = -1e4  # of a score that counts for nothing: exp of it is 0, and it is within what fp16 is trusted with (ranges.LIMIT)


@dataclass
class Lowering:
    """One graph on its way into a program.

    Attributes:
        constants: where its weights go.
        system: the oldest that must run it.
        wide: whether the node at hand computes in fp32.
        values: what each value of the graph has become; arrays are constants that are not weights.
        casts: of values, by name and whether to fp32: each is cast once.
    """

    constants: Constants
    system: System
    wide: bool
    values: dict[ir.Value, Operand]
    casts: dict[tuple[str, bool], Operand] = field(default_factory=dict)

    def lower(self, node: ir.Node) -> None:
        """Add one node's operations to the program at hand.

        Raises:
            ExportError: there is no form for it.
        """
        if node.op_type not in LOWERED or node.domain:
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            complaint = Complaint(node.name or name, f"no form for {name}")
            raise ExportError("The graph cannot become a Core ML program.", [complaint])
        self.values[node.outputs[0]] = LOWERED[node.op_type](self, node)

    def receive(self, value: ir.Value, variable: Any) -> None:
        """Take a value from outside the program, as it was handed on there."""
        self.values[value] = variable

    def handed_on(self, value: ir.Value) -> Operand:
        """A value as the next program takes it."""
        return self.lowered(value)

    def forms(self) -> Iterator[tuple[ir.Value, Operand]]:
        """Every value with each variable or array that stands for it."""
        yield from self.values.items()

    def lowered(self, value: ir.Value) -> Operand:
        """What a value has become, in the type that it was made in."""
        return self.values[value]

    def operand(self, value: ir.Value | None) -> Operand:
        """A value as a variable, or as an array where it is known."""
        assert value is not None
        if value.const_value is not None and value not in self.values:
            if isinstance(value.const_value, LazyWeight):
                return self.constants.weight(value.const_value.weight, self.wide)
            self.values[value] = value.const_value.numpy()
        operand = self.lowered(value)
        if isinstance(operand, np.ndarray):
            return self._typed(operand)
        return self.cast(operand)

    def array(self, value: ir.Value | None) -> np.ndarray:
        """A value that must be known when the program is made."""
        operand = self.operand(value)
        assert isinstance(operand, np.ndarray), f"{value} is not constant"
        return operand

    def number(self, value: float) -> Any:
        """A number in the type that the node at hand computes in."""
        return np.float32(value) if self.wide else np.float16(value)

    def cast(self, x: Any) -> Any:
        """``x`` in the type that the node at hand computes in; integers stay."""
        if not types.is_float(x.dtype) or (x.dtype == types.fp32) == self.wide:
            return x
        key = (x.name, self.wide)
        if key not in self.casts:
            self.casts[key] = mb.cast(x=x, dtype="fp32" if self.wide else "fp16")
        return self.casts[key]

    def _typed(self, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind == "f":
            return array.astype(np.float32 if self.wide else np.float16)
        if array.dtype.kind in "iu":  # "to the end" is the largest int64, which would become -1
            limits = np.iinfo(np.int32)
            return np.asarray(np.clip(array, limits.min, limits.max), np.int32)
        return array


Lower = Callable[[Lowering, ir.Node], Operand]


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """A node's attribute as a Python value."""
    return node.attributes[name].value if name in node.attributes else default


def _constant(at: Lowering, node: ir.Node) -> np.ndarray:
    value = attribute(node, "value")
    return np.asarray(value.numpy()) if value is not None else np.asarray(next(iter(node.attributes.values())).value)


def _elementwise(operation: Any, array: Callable[[Any, Any], Any]) -> Lower:
    def lowered(at: Lowering, node: ir.Node) -> Operand:
        x, y = (at.operand(value) for value in node.inputs)
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            return np.asarray(array(x, y))
        return operation(x=x, y=y)

    return lowered


def _unary(operation: Any, **options: Any) -> Lower:
    return lambda at, node: operation(x=at.operand(node.inputs[0]), **options)


def _linear(at: Lowering, x: Operand, weight: ir.Value, bias: ir.Value | None) -> Operand:
    """``x W^T + b``; the bias may come from a following Add."""
    tensor = weight.const_value
    assert isinstance(tensor, LazyWeight)
    inputs: dict[str, Any] = {} if bias is None else {"bias": at.operand(bias)}
    return mb.linear(x=x, weight=at.constants.weight(tensor.weight, at.wide), **inputs)


def _matmul(at: Lowering, node: ir.Node) -> Operand:
    """A product; with the bias that follows, where nothing else reads between."""
    x, right = at.operand(node.inputs[0]), node.inputs[1]
    assert right is not None
    if isinstance(right.const_value, LazyWeight):
        return with_bias(node, at.values, lambda bias: _linear(at, x, right, bias))
    return mb.matmul(x=x, y=at.operand(right))


def with_bias(node: ir.Node, operands: dict[ir.Value, Operand], product: Callable[[ir.Value | None], Operand]) -> Operand:
    """A linear layer's product, with the bias that follows where nothing else reads between; ``operands`` then have the sum."""
    right = node.inputs[1]
    assert right is not None
    assert isinstance(right.const_value, LazyWeight)
    assert right.const_value.transposed, f"{right.name}: a product with a weight that is not a linear layer's"
    after = _bias_after(node)
    if after is None:
        return product(None)
    add, bias = after
    operands[add.outputs[0]] = product(bias)
    return operands[add.outputs[0]]


def _bias_after(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    readers = node.outputs[0].consumers()
    if len(readers) != 1 or readers[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    other = next((value for value in readers[0].inputs if value is not node.outputs[0]), None)
    if other is None or not isinstance(other.const_value, LazyWeight) or len(other.const_value.shape) != 1:
        return None
    return readers[0], other


def _add(at: Lowering, node: ir.Node) -> Operand:
    done = at.values.get(node.outputs[0])  # a bias that its product has taken
    return _elementwise(mb.add, np.add)(at, node) if done is None else done


def _gemm(at: Lowering, node: ir.Node) -> Operand:
    x, weight, bias = (*node.inputs, None)[:3]
    assert weight is not None
    assert attribute(node, "transB", 0) == 1
    return _linear(at, at.operand(x), weight, bias)


def _conv(at: Lowering, node: ir.Node) -> Operand:
    x, weight, bias = (*node.inputs, None)[:3]
    rank = len(attribute(node, "strides", (1, 1)))
    return mb.conv(
        x=at.operand(x),
        weight=at.operand(weight),
        **({} if bias is None else {"bias": at.operand(bias)}),
        strides=list(attribute(node, "strides", [1] * rank)),
        dilations=list(attribute(node, "dilations", [1] * rank)),
        groups=attribute(node, "group", 1),
        pad_type="custom",
        pad=_interleaved(attribute(node, "pads", [0] * 2 * rank)),
    )


def _interleaved(pads: Any) -> list[int]:
    """ONNX lists all beginnings, then all ends; MIL lists both of each axis."""
    half = len(pads) // 2
    return [int(pads[side * half + axis]) for axis in range(half) for side in (0, 1)]


def _gather(at: Lowering, node: ir.Node) -> Operand:
    x, indices, axis = at.operand(node.inputs[0]), at.operand(node.inputs[1]), attribute(node, "axis", 0)
    if isinstance(x, np.ndarray):
        return np.take(x, np.asarray(indices), axis)
    axis %= x.rank
    if isinstance(indices, np.ndarray) and indices.ndim == 0:  # one row: a slice, which the Neural Engine has
        index = int(indices) % x.shape[axis]
        begin = [index if i == axis else 0 for i in range(x.rank)]
        end = [index + 1 if i == axis else x.shape[i] for i in range(x.rank)]
        return mb.slice_by_index(x=x, begin=begin, end=end, squeeze_mask=[i == axis for i in range(x.rank)])
    return mb.gather(x=x, indices=indices, axis=axis, validate_indices=False)


def _reshape(at: Lowering, node: ir.Node) -> Operand:
    x, shape = at.operand(node.inputs[0]), at.array(node.inputs[1]).tolist()
    if isinstance(x, np.ndarray):
        return x.reshape(shape)
    shape = [x.shape[i] if size == 0 and not attribute(node, "allowzero", 0) else size for i, size in enumerate(shape)]
    return mb.reshape(x=x, shape=shape)


def _transpose(at: Lowering, node: ir.Node) -> Operand:
    return mb.transpose(x=at.operand(node.inputs[0]), perm=list(attribute(node, "perm")))


def _concat(at: Lowering, node: ir.Node) -> Operand:
    parts = [at.operand(value) for value in node.inputs]
    axis = attribute(node, "axis")
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts], axis)
    return mb.concat(values=parts, axis=axis)


def _slice(at: Lowering, node: ir.Node) -> Operand:
    x = at.operand(node.inputs[0])
    begin, end = [0] * len(x.shape), list(x.shape)
    for axis, part in taken(at, node):
        begin[axis], end[axis], _ = part.indices(x.shape[axis])
    if isinstance(x, np.ndarray):
        return x[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))]
    return mb.slice_by_index(x=x, begin=begin, end=end)


def taken(at: Lowering, node: ir.Node) -> list[tuple[int, slice]]:
    """What a Slice takes, by axis; every element of it."""
    starts, ends, axes = (at.array(value).tolist() for value in node.inputs[1:4])
    assert len(node.inputs) < 5 or all(step == 1 for step in at.array(node.inputs[4]).tolist())
    return [(axis, slice(first, last)) for first, last, axis in zip(starts, ends, axes, strict=True)]


def _expand(at: Lowering, node: ir.Node) -> Operand:
    x, shape = at.operand(node.inputs[0]), at.array(node.inputs[1]).tolist()
    if isinstance(x, np.ndarray):
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape)))
    target = np.broadcast_shapes(x.shape, tuple(shape))
    narrow = mb.reshape(x=x, shape=[1] * (len(target) - x.rank) + list(x.shape))
    return mb.tile(x=narrow, reps=[size // had for size, had in zip(target, narrow.shape, strict=True)])


def _unsqueeze(at: Lowering, node: ir.Node) -> Operand:
    x, axes = at.operand(node.inputs[0]), at.array(node.inputs[1]).tolist()
    return np.expand_dims(x, axes) if isinstance(x, np.ndarray) else mb.expand_dims(x=x, axes=axes)


def _squeeze(at: Lowering, node: ir.Node) -> Operand:
    x, axes = at.operand(node.inputs[0]), at.array(node.inputs[1]).tolist()
    return np.squeeze(x, tuple(axes)) if isinstance(x, np.ndarray) else mb.squeeze(x=x, axes=axes)


def _clip(at: Lowering, node: ir.Node) -> Operand:
    x, (low, high) = at.operand(node.inputs[0]), (at.array(value) for value in node.inputs[1:])
    return np.clip(x, low, high) if isinstance(x, np.ndarray) else mb.clip(x=x, alpha=low[()], beta=high[()])


def _cast(at: Lowering, node: ir.Node) -> Operand:
    """Integers and booleans as numbers and the other way round; between floating-point types the program's precision decides."""
    x, dtype = at.operand(node.inputs[0]), ir.DataType(attribute(node, "to"))
    if isinstance(x, np.ndarray):
        return x.astype(dtype.numpy())
    if dtype.is_floating_point():
        return x if types.is_float(x.dtype) else mb.cast(x=x, dtype="fp32" if at.wide else "fp16")
    return mb.cast(x=x, dtype="bool" if dtype == ir.DataType.BOOL else "int32")


def _argmax(at: Lowering, node: ir.Node) -> Operand:
    x = at.operand(node.inputs[0])
    return mb.reduce_argmax(x=x, axis=attribute(node, "axis"), keep_dims=bool(attribute(node, "keepdims", 1)))


def _layer_norm(at: Lowering, node: ir.Node) -> Operand:
    first, data = attribute(node, "axis", -1), at.operand(node.inputs[0])
    return layer_norm(at, node, data, list(range(first % data.rank, data.rank)), at.operand)


def layer_norm(at: Lowering, node: ir.Node, x: Operand, axes: list[int], factor: Callable[[ir.Value], Operand]) -> Operand:
    """A layer norm over ``axes``; scale and shift that are no constants (modulations) follow it, as ``factor`` shapes them."""
    given = {name: value for name, value in zip(("gamma", "beta"), node.inputs[1:], strict=False) if value is not None}
    if all(value.const_value is not None for value in given.values()):
        return mb.layer_norm(x=x, axes=axes, epsilon=_epsilon(at, node), **{n: at.operand(value) for n, value in given.items()})
    normed = mb.layer_norm(x=x, axes=axes, epsilon=_epsilon(at, node))
    scaled = mb.mul(x=normed, y=factor(given["gamma"]))
    return mb.add(x=scaled, y=factor(given["beta"])) if "beta" in given else scaled


def _rms_norm(at: Lowering, node: ir.Node) -> Operand:
    return rms_norm(at, node, at.operand(node.inputs[0]), -1, at.operand)


def rms_norm(at: Lowering, node: ir.Node, x: Operand, axis: int, factor: Callable[[ir.Value], Operand]) -> Operand:
    """An RMS norm over one axis, as the layer norm of the values and their negatives; ``factor`` shapes its scale."""
    scale = node.inputs[1]
    assert scale is not None
    both = mb.concat(values=[x, mb.mul(x=x, y=at.number(-1))], axis=axis)
    normed = mb.layer_norm(x=both, axes=[axis], epsilon=_epsilon(at, node))
    half = mb.slice_by_index(x=normed, begin=[0] * x.rank, end=list(x.shape))
    return mb.mul(x=half, y=factor(scale))


def _group_norm(at: Lowering, node: ir.Node) -> Operand:
    x = at.operand(node.inputs[0])
    groups, channels = attribute(node, "num_groups"), x.shape[1]
    rows = mb.reshape(x=x, shape=[x.shape[0], groups, -1])
    normed = mb.reshape(x=mb.layer_norm(x=rows, axes=[-1], epsilon=_epsilon(at, node)), shape=list(x.shape))
    wide = (1, channels, *[1] * (x.rank - 2))
    scale, bias = (_shaped(at, value, wide) for value in node.inputs[1:3])
    return mb.add(x=mb.mul(x=normed, y=scale), y=bias)


def _shaped(at: Lowering, value: ir.Value | None, shape: tuple[int, ...]) -> Operand:
    assert value is not None
    if isinstance(value.const_value, LazyWeight):
        return at.constants.weight(value.const_value.weight, at.wide, shape)
    return at.array(value).reshape(shape)


def _epsilon(at: Lowering, node: ir.Node) -> Any:
    return at.number(attribute(node, "epsilon", 1e-5))


def _attention(at: Lowering, node: ir.Node) -> Operand:
    heads, scale = attribute(node, "q_num_heads"), attribute(node, "scale")
    q, k, v = (_heads(at.operand(x), heads) for x in node.inputs[:3])
    bias = score_bias(at, node, q.shape[2], k.shape[2])
    if at.system == "iOS18":
        factor = scale * math.sqrt(q.shape[-1])  # the operation divides by the root of the head's size itself
        q = q if math.isclose(factor, 1) else mb.mul(x=q, y=at.number(factor))
        mask = {} if bias is None else {"attn_mask": bias}
        mixed = mb.scaled_dot_product_attention(query=q, key=k, value=v, **mask)
    else:
        scores = mb.matmul(x=mb.mul(x=q, y=at.number(scale)), y=k, transpose_y=True)
        mixed = mb.matmul(x=mb.softmax(x=scores if bias is None else mb.add(x=scores, y=bias), axis=-1), y=v)
    batch, _, tokens, _ = mixed.shape
    return mb.reshape(x=mb.transpose(x=mixed, perm=[0, 2, 1, 3]), shape=[batch, tokens, -1])


def score_bias(at: Lowering, node: ir.Node, queries: int, keys: int) -> Operand | None:
    """What is added to an attention's scores ``[1, 1 or heads, 1 or queries, keys]``; none where nothing is."""
    if attribute(node, "is_causal", 0):
        return np.triu(np.full((1, 1, queries, keys), MASKED, np.float32 if at.wide else np.float16), 1)
    given = node.inputs[3] if len(node.inputs) > 3 else None
    return None if given is None else at.operand(given)


def _heads(x: Operand, heads: int) -> Operand:
    batch, tokens, width = x.shape
    return mb.transpose(x=mb.reshape(x=x, shape=[batch, tokens, heads, width // heads]), perm=[0, 2, 1, 3])


def _gelu(at: Lowering, node: ir.Node) -> Operand:
    return mb.gelu(x=at.operand(node.inputs[0]), mode=gelu_mode(node))


def gelu_mode(node: ir.Node) -> str:
    """MIL's name for a node's GELU."""
    return "TANH_APPROXIMATION" if attribute(node, "approximate", "none") == "tanh" else "EXACT"


def _pad(at: Lowering, node: ir.Node) -> Operand:
    x, pads = at.operand(node.inputs[0]), at.array(node.inputs[1]).tolist()
    value = at.array(node.inputs[2]).item() if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        every = [0] * 2 * x.rank
        axes = at.array(node.inputs[3]).tolist()
        for i, axis in enumerate(axes):
            every[axis % x.rank], every[axis % x.rank + x.rank] = pads[i], pads[i + len(axes)]
        pads = every
    return mb.pad(x=x, pad=_interleaved(pads), mode="constant", constant_val=at.number(value))


def _resize(at: Lowering, node: ir.Node) -> Operand:
    """Nearest neighbours, twice as wide and high: the only resizing of SD3's VAE."""
    assert attribute(node, "mode", "nearest") == "nearest"
    source, target = node.inputs[0], node.outputs[0]
    assert source is not None
    x = at.operand(source)
    assert target.shape is not None
    height, width = (size for size in target.shape.numpy()[2:])
    factors = [height / x.shape[2], width / x.shape[3]]
    return mb.upsample_nearest_neighbor(x=x, scale_factor_height=factors[0], scale_factor_width=factors[1])


LOWERED: dict[str, Lower] = {
    "Constant": _constant,
    "Add": _add,
    "Sub": _elementwise(mb.sub, np.subtract),
    "Mul": _elementwise(mb.mul, np.multiply),
    "Div": _elementwise(mb.real_div, np.divide),
    "Max": _elementwise(mb.maximum, np.maximum),
    "Min": _elementwise(mb.minimum, np.minimum),
    "Equal": _elementwise(mb.equal, np.equal),
    "Greater": _elementwise(mb.greater, np.greater),
    "Sigmoid": _unary(mb.sigmoid),
    "Tanh": _unary(mb.tanh),
    "Relu": _unary(mb.relu),
    "Gelu": _gelu,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Gather": _gather,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Expand": _expand,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Cast": _cast,
    "Clip": _clip,
    "ArgMax": _argmax,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "GroupNormalization": _group_norm,
    "Attention": _attention,
    "Pad": _pad,
    "Resize": _resize,
}
