"""Tokens in the Neural Engine's layout: ``[1, channels, 1, tokens]``, linear layers as 1x1 convolutions, attention head by head.

Apple's recipe (apple/ml-ane-transformers; "split einsum" in apple/ml-stable-diffusion), for one picture at a time::

    x [1, S, C]             [1, C, 1, S]
    x [1, S, H, D]          [H, D, 1, S]
    x W^T + b               conv(x, W [out, in, 1, 1], b)
    a norm over C or D      layer_norm(axes=[1])
    attention               for each head: softmax(einsum("bkhc,bchq->bkhq", k, q) + bias, axis=1)
                                           einsum("bchk,bkhq->bchq", v, scores)

A value takes this layout where a linear layer, a norm or an attention reads it, keeps it through whatever works on elements,
channels or tokens alone, and returns to rows where something else reads it. In between only each attention's keys are transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.coreml.backend import mb
from exporters.coreml.lower import Lowering, Operand, attribute, gelu_mode, layer_norm, rms_norm, score_bias, taken, with_bias
from exporters.onnx.weights import LazyWeight
from exporters.student.weights.weight import Weight


@dataclass
class ChannelsFirst(Lowering):
    """A graph on its way into a program for the Neural Engine.

    Attributes:
        columns: what stands for a value in this layout, beside or in place of :attr:`values`.
    """

    columns: dict[ir.Value, Operand] = field(default_factory=dict)

    def lower(self, node: ir.Node) -> None:
        form = None if node.domain else FORMS.get(node.op_type)
        operand = None if form is None else form(self, node)
        if operand is None:
            super().lower(node)
        else:
            self.columns[node.outputs[0]] = operand

    def receive(self, value: ir.Value, variable: Any) -> None:
        handed_on = value.shape is not None and len(variable.shape) != len(value.shape)
        forms = self.columns if handed_on else self.values
        forms[value] = variable

    def handed_on(self, value: ir.Value) -> Operand:
        return self.columns[value] if value in self.columns and _rank(value) == ROWS else self.lowered(value)

    def forms(self) -> Iterator[tuple[ir.Value, Operand]]:
        yield from super().forms()
        yield from self.columns.items()

    def lowered(self, value: ir.Value) -> Operand:
        if value not in self.values and value in self.columns:
            x = self.columns[value]
            if _rank(value) == ROWS:
                self.values[value] = mb.squeeze(x=mb.transpose(x=x, perm=[0, 3, 2, 1]), axes=[2])
            else:
                self.values[value] = mb.transpose(x=x, perm=[2, 3, 0, 1])
        return super().lowered(value)

    def is_rows(self, value: ir.Value | None) -> bool:
        """Whether a value is the tokens of one picture, ``[1, S, C]`` in the graph."""
        if value in self.columns:
            return value is not None and _rank(value) == ROWS
        operand = None if value is None else self.values.get(value)
        return operand is not None and not isinstance(operand, np.ndarray) and operand.rank == ROWS and operand.shape[0] == 1

    def has_column(self, value: ir.Value | None) -> bool:
        """Whether :meth:`column` has a form for a value beside such tokens."""
        if self.is_rows(value):
            return True
        operand = None if value is None else self.values.get(value, value.const_value)
        shape = None if operand is None or value in self.columns else tuple(operand.shape)
        return shape is not None and (len(shape) < ROWS or (len(shape) == ROWS and shape[0] == 1))

    def column(self, value: ir.Value | None) -> Operand:
        """A value in this layout: ``[1, S, C]``, ``[S, C]`` or ``[C]`` as ``[1, C, 1, S]``; numbers stay as they are."""
        assert value is not None
        if self.is_rows(value) and value not in self.columns:
            self.columns[value] = _moved(self.values[value])
        if value in self.columns:
            return self.cast(self.columns[value])
        if value not in self.values and isinstance(value.const_value, LazyWeight):
            weight = value.const_value.weight
            if len(weight.shape) == 1:
                return self.constants.weight(weight, self.wide, (1, *weight.shape, 1, 1))
            if not weight.name:  # no rule speaks of it: it can be stored as it is read
                return self.constants.weight(_as_column(weight), self.wide)
        x = self.operand(value)
        if isinstance(x, np.ndarray):
            return _column(x)
        if len(x.shape) == 0:
            return x
        return mb.reshape(x=x, shape=[1, -1, 1, 1]) if x.rank == 1 else _moved(x)


Form = Callable[[ChannelsFirst, ir.Node], "Operand | None"]  # nothing where the node does not work on tokens
ROWS, HEADS = 3, 4  # axes of a value that is [1, S, C] or [1, S, H, D]
AXES = {ROWS: {1: 3, 2: 1}, HEADS: {1: 3}}  # where these axes are in this layout


def _rank(value: ir.Value) -> int:
    """Axes of a value in the graph; the exporter leaves shapes out within kernels, whose values are all rows."""
    return ROWS if value.shape is None else len(value.shape)


def _column(x: np.ndarray) -> np.ndarray:
    if x.ndim == 0:
        return x
    rows = x.reshape(1, -1, x.shape[-1])
    return rows.transpose(0, 2, 1)[:, :, None, :]


def _moved(x: Operand) -> Operand:
    return mb.transpose(x=mb.expand_dims(x=x, axes=[2] if x.rank == ROWS else [0, 2]), perm=[0, 3, 2, 1])


def _as_column(weight: Weight) -> Weight:
    channels = weight.shape[-1]
    shape = (1, channels, 1, weight.elements // channels)
    return replace(weight, shape=shape, load=lambda: np.ascontiguousarray(_column(weight.load())))


def _product(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    x, weight = node.inputs[:2]
    if not at.is_rows(x) or weight is None or not isinstance(weight.const_value, LazyWeight):
        return None
    stored, column = weight.const_value.weight, at.column(x)

    def convolution(bias: ir.Value | None) -> Operand:
        inputs = {} if bias is None else {"bias": at.operand(bias)}
        return mb.conv(x=column, weight=at.constants.weight(stored, at.wide, (*stored.shape, 1, 1)), pad_type="valid", **inputs)

    return with_bias(node, at.columns, convolution)


def _elementwise(operation: Any) -> Form:
    def form(at: ChannelsFirst, node: ir.Node) -> Operand | None:
        if node.outputs[0] in at.columns:  # a bias that its product has taken
            return at.columns[node.outputs[0]]
        if not (any(value in at.columns for value in node.inputs) and all(at.has_column(value) for value in node.inputs)):
            return None
        x, y = (at.column(value) for value in node.inputs)
        return operation(x=x, y=y)

    return form


def _sigmoid(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    x = node.inputs[0]
    return mb.sigmoid(x=at.column(x)) if x in at.columns else None


def _gelu(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    x = node.inputs[0]
    return mb.gelu(x=at.column(x), mode=gelu_mode(node)) if x in at.columns else None


def _layer_norm(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    x = node.inputs[0]
    if not at.is_rows(x) or attribute(node, "axis", -1) not in (-1, ROWS - 1):
        return None
    return layer_norm(at, node, at.column(x), [1], at.column)


def _rms_norm(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    x = node.inputs[0]
    return rms_norm(at, node, at.column(x), 1, at.column) if at.is_rows(x) or x in at.columns else None


def _reshape(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    """Channels into heads, and back."""
    source, target = node.inputs[0], node.outputs[0].shape
    if source not in at.columns or target is None:
        return None
    x, shape = at.column(source), target.numpy()
    if {_rank(source), len(shape)} != {ROWS, HEADS} or shape[:2] != (1, x.shape[3]):
        return None
    return mb.reshape(x=x, shape=[*(shape[2:] if len(shape) == HEADS else (1, shape[2])), 1, x.shape[3]])


def _concat(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    ranks = {_rank(value) for value in node.inputs if value is not None and value in at.columns}
    if len(ranks) != 1 or not all(value in at.columns for value in node.inputs):
        return None
    rank = ranks.pop()
    axis = AXES[rank].get(attribute(node, "axis") % rank)
    return None if axis is None else mb.concat(values=[at.column(value) for value in node.inputs], axis=axis)


def _slice(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    source = node.inputs[0]
    if source is None or source not in at.columns:
        return None
    x, rank = at.column(source), _rank(source)
    begin, end = [0] * x.rank, list(x.shape)
    for axis, part in taken(at, node):
        place = AXES[rank].get(axis % rank)
        if place is None:
            return None
        begin[place], end[place], _ = part.indices(x.shape[place])
    return mb.slice_by_index(x=x, begin=begin, end=end)


def _transpose(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    """Pixels become tokens: nothing moves."""
    x = node.inputs[0]
    pixels = at.is_rows(x) and x not in at.columns and tuple(attribute(node, "perm")) == (0, 2, 1)
    return mb.expand_dims(x=at.operand(x), axes=[2]) if pixels else None


def _attention(at: ChannelsFirst, node: ir.Node) -> Operand | None:
    if not all(at.is_rows(value) for value in node.inputs[:3]):
        return None
    heads, scale = attribute(node, "q_num_heads"), attribute(node, "scale")
    q, k, v = (at.column(value) for value in node.inputs[:3])
    biases = _biases(score_bias(at, node, q.shape[3], k.shape[3]), heads)
    queries = _split(mb.mul(x=q, y=at.number(scale)), heads, 1)
    keys = _split(mb.transpose(x=k, perm=[0, 3, 2, 1]), heads, 3)
    mixed = []
    for query, key, value, bias in zip(queries, keys, _split(v, heads, 1), biases, strict=True):
        scores = mb.einsum(values=(key, query), equation="bkhc,bchq->bkhq")
        shares = mb.softmax(x=scores if bias is None else mb.add(x=scores, y=bias), axis=1)
        mixed.append(mb.einsum(values=(value, shares), equation="bchk,bkhq->bchq"))
    return mixed[0] if heads == 1 else mb.concat(values=mixed, axis=1)


def _biases(bias: Operand | None, heads: int) -> Sequence[Operand | None]:
    """A bias on scores ``[1, 1 or heads, 1 or queries, keys]`` as ``[1, keys, 1, 1 or queries]`` for each head."""
    if bias is None:
        return [None] * heads
    perm = [1, 3, 0, 2]
    shared = bias.shape[1] == 1
    if isinstance(bias, np.ndarray):
        moved = bias.transpose(perm)
        return [moved] * heads if shared else np.split(moved, heads)
    flat = bias.shape[1] == bias.shape[2] == 1
    moved = mb.reshape(x=bias, shape=[1, -1, 1, 1]) if flat else mb.transpose(x=bias, perm=perm)
    return [moved] * heads if shared else _split(moved, heads, 0)


def _split(x: Operand, parts: int, axis: int) -> Sequence[Operand]:
    return [x] if parts == 1 else mb.split(x=x, num_splits=parts, axis=axis)


FORMS: dict[str, Form] = {
    "Add": _elementwise(mb.add),
    "Sub": _elementwise(mb.sub),
    "Mul": _elementwise(mb.mul),
    "Div": _elementwise(mb.real_div),
    "Max": _elementwise(mb.maximum),
    "Min": _elementwise(mb.minimum),
    "Sigmoid": _sigmoid,
    "Gelu": _gelu,
    "MatMul": _product,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "Attention": _attention,
}
