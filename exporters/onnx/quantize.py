"""A profile's integer schemes as ONNX operators; weights are encoded when they are written, one at a time.

::

    x -> MatMul(W)                      scheme intBgN:  x -> MatMulNBits(codes, scales)          (com.microsoft)
                                        scheme uintBgN: x -> MatMulNBits(codes, scales, zeros)
                                        scheme int8:    codes -> Cast -> MatMul -> Mul(scales)       (in fp32)
                                                        codes -> Cast -> Mul(scales) -> MatMul       (in fp16)
                                        scheme w8a8:    x -> DynamicQuantizeLinear -> MatMulInteger(codes, zero) -> Cast -> Mul

    x -> Conv(W)                        scheme int8:    codes -> DequantizeLinear -> W; x -> Conv(W)
    ids -> Gather(W)                    scheme int8:    Mul(Cast(Gather(codes, ids)), Gather(scales, ids))

``MatMulNBits`` is given ``accuracy_level`` 4: without it onnxruntime's 8-bit kernel has no fast path on CPU. Its codes are
unsigned with the middle of their range for zero. The pattern for ``w8a8`` is the one that onnxruntime fuses into
``DynamicQuantizeMatMul`` (or ``MatMulIntegerToFloat``, where several products share one input's rounding, as here). Its codes are
unsigned with 128 for zero: beside unsigned inputs, x86 processors without VNNI add two products with *signed* codes in 16 bits,
which saturates (onnxruntime's kernel for u8 x s8: 64 products of 255 and 127 come to 1,048,544 in place of 2,072,640).

``int8`` multiplies by its scales after the product: onnxruntime 1.32 turns DequantizeLinear -> MatMul into MatMulNBits that
rounds activations to 8 bits, unasked (46 dB on normal data, where weights alone would give 135 dB). In fp16 it multiplies the
codes by them, which a runtime folds when it loads the graph: a product with codes up to 127 would leave fp16's range where its
result, scaled, is 60.

Where a calibration is at hand, inputs that are rounded beside 8-bit codes are equalised first (:mod:`exporters.onnx.equalise`).

A weight that a rule speaks of and that has no such form keeps its floating-point form and is reported with the reason.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from exporters.onnx.equalise import equalise_inputs
from exporters.onnx.transpose import transposed
from exporters.onnx.weights import STAMP, LazyWeight
from exporters.student.weights.weight import Weight
from quantization.calibration import Calibration, Layer
from quantization.codecs.codec import encode_codes
from quantization.codecs.integer import IntegerTensor
from quantization.equalisation import pays
from quantization.profile import Profile
from quantization.schemes import Scheme

SCALE_FORMS = ("scales", "block scales")
BESIDE_CODES = (*SCALE_FORMS, "block zeros")  # what is no weight itself
UNSIGNED_ZERO = 128  # what stands for zero where 8-bit codes are unsigned
FLOAT_TYPES = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}


_READERS: dict[Layer, set[str]] = {"linear": {"MatMul", "Gemm"}, "convolution": {"Conv"}, "embedding": {"Gather"}}


def unsupported(layer: Layer, scheme: Scheme) -> str:
    """Why onnxruntime has no form for a layer's weight in a scheme; empty where it has one."""
    if scheme.kind == "lookup":
        return "onnxruntime has no operator for look-up tables"
    if scheme.block is not None and layer == "convolution":
        return "onnxruntime has no convolution with block scales"
    if scheme.block is not None and layer == "embedding":
        return "embeddings take int8 only"
    return ""


@dataclass(frozen=True)
class Kept:
    """A weight that keeps its floating-point form though a rule gave it an integer scheme."""

    component: str
    name: str
    scheme: str
    reason: str


class _Encoding:
    """One weight's codes and scales: encoded when the first of them is written, dropped after the last.

    Of the weight times ``factors``, where its product's inputs are equalised.
    """

    def __init__(self, weight: Weight, scheme: Scheme, calibration: Calibration | None, factors: np.ndarray | None) -> None:
        self.weight, self.scheme, self.calibration, self.factors = weight, scheme, calibration, factors
        self._left: set[str] = set()
        self._encoded: IntegerTensor | None = None
        self._lock = threading.Lock()  # its initializers may be read at the same time

    def part(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], form: str) -> LazyCodes:
        """One initializer made of this encoding."""
        self._left.add(form)
        return LazyCodes(self, name, dtype, shape, form)

    def take(self, form: str) -> IntegerTensor:
        with self._lock:
            if self._encoded is None:
                sensitivity = (
                    None if self.calibration is None else self.calibration.sensitivity(self.weight.component, self.weight.name)
                )
                encoded = encode_codes(self.weight.load(), self.scheme, self.weight.origin, sensitivity, self.factors)
                assert isinstance(encoded, IntegerTensor)  # look-up tables are unsupported
                self._encoded = encoded
            encoded = self._encoded
            self._left.discard(form)
            if not self._left:
                self._encoded = None
            return encoded


class LazyCodes(ir.LazyTensor):
    """Codes or scales of a weight as an ONNX initializer, encoded when its turn comes.

    Args:
        encoding: the weight's encoding, shared by its initializers.
        name: the initializer's name.
        dtype: the stored type.
        shape: the stored shape.
        form: ``blocks``, ``block scales`` and ``block zeros`` (MatMulNBits), ``transposed`` (MatMul), ``transposed unsigned``
            (MatMulInteger), ``rows`` (Conv, Gather), ``scales``.
    """

    def __init__(self, encoding: _Encoding, name: str, dtype: ir.DataType, shape: tuple[int, ...], form: str) -> None:
        super().__init__(lambda: ir.Tensor(self.read(), name=name), dtype=dtype, shape=ir.Shape(shape), cache=False, name=name)
        self.encoding, self.form = encoding, form

    @property
    def identity(self) -> str:
        """What tells it from all other contents that a student's graphs store with one profile and one calibration."""
        of = self.encoding
        factors = "" if of.factors is None else hashlib.sha256(of.factors.tobytes()).hexdigest()
        return repr(
            (of.weight.component, of.weight.name, of.scheme.name, factors, self.form, self.dtype.name, self.shape.numpy())
        )

    def read(self) -> np.ndarray:
        """The stored numbers."""
        encoded, shape = self.encoding.take(self.form), self.shape.numpy()
        if self.form in SCALE_FORMS:
            return np.ascontiguousarray(encoded.scales.reshape(shape).astype(FLOAT_TYPES[self.dtype]))
        if self.form == "blocks":
            return pack_unsigned(encoded.codes, self.encoding.scheme.bits)
        if self.form == "block zeros":
            assert encoded.zeros is not None
            per_byte = 8 // self.encoding.scheme.bits
            zeros = np.pad(encoded.zeros, ((0, 0), (0, -encoded.zeros.shape[1] % per_byte)))
            return pack_unsigned(zeros, self.encoding.scheme.bits).reshape(shape)
        codes = encoded.codes.reshape(len(encoded.codes), -1)[:, : encoded.columns]
        if self.form == "transposed unsigned":
            return transposed(codes.view(np.uint8) ^ np.uint8(UNSIGNED_ZERO))
        return transposed(codes) if self.form == "transposed" else np.ascontiguousarray(codes.reshape(shape))


def pack_unsigned(codes: np.ndarray, bits: int) -> np.ndarray:
    """Two's-complement codes as MatMulNBits stores them: offset to unsigned, the first value in the lowest bits.

    >>> pack_unsigned(np.array([[[-8, 7, 0, 1]]], np.int8), 4)
    array([[[240, 152]]], dtype=uint8)
    """
    unsigned = codes.view(np.uint8) ^ np.uint8(1 << (bits - 1))
    unsigned &= np.uint8((1 << bits) - 1)
    words = unsigned.view(f"<u{8 // bits}")  # what goes into a byte, a byte each
    packed = words.copy()
    for i in range(1, 8 // bits):
        packed |= words >> ((8 - bits) * i)
    return packed.astype(np.uint8)  # their lowest bytes


class QuantizeWeights(InPlacePass):
    """Give every weight the scheme that the profile says.

    Args:
        profile: the rules.
        calibration: what is known of the weights; without it every scheme is data-free.

    Attributes:
        kept: what kept its floating-point form, with the reasons.
    """

    def __init__(self, profile: Profile, calibration: Calibration | None = None) -> None:
        super().__init__()
        self.profile, self.calibration = profile, calibration
        self.kept: list[Kept] = []

    def call(self, model: ir.Model) -> PassResult:
        graph = model.graph
        chosen = {value: scheme for value in graph.initializers.values() if (scheme := self._choose(value)) is not None}
        rounding = {value for value, scheme in chosen.items() if pays(scheme)}
        factors = {} if self.calibration is None else equalise_inputs(graph, rounding, self.calibration)
        rounded: _Rounded = {}
        for value, scheme in chosen.items():
            self._rewrite(value, scheme, factors.get(value), rounded)
        if chosen:
            graph.opset_imports["com.microsoft"] = 1
        return PassResult(model, bool(chosen))

    def _choose(self, value: ir.Value) -> Scheme | None:
        """The integer scheme of an initializer; none for floating point, and for what is no weight."""
        tensor = value.const_value
        if not isinstance(tensor, LazyWeight) or not tensor.weight.name or len(tensor.weight.shape) < 2:
            return None
        scheme = self.profile.scheme(tensor.weight.component, tensor.weight.name)
        if scheme.kind == "float":
            return None
        if reason := self._unfit(value, tensor, scheme):
            self.kept.append(Kept(tensor.weight.component, tensor.weight.name, scheme.name, reason))
            return None
        return scheme

    @staticmethod
    def _unfit(value: ir.Value, tensor: LazyWeight, scheme: Scheme) -> str:
        """Why a weight cannot take its scheme; empty where it can."""
        readers = value.consumers()
        kinds = {reader.op_type for reader in readers}
        if (len(readers) != 1 and kinds != {"Conv"}) or value.is_graph_output():  # a convolution in bands has one for each
            return "it has several readers"
        layer = next((layer for layer, readers_of in _READERS.items() if kinds <= readers_of), None)
        if layer is None or (layer == "embedding" and (readers[0].inputs[0] is not value or any(tensor.padding))):
            return f"it is read by {'/'.join(kinds)}, not by a product"
        if reason := unsupported(layer, scheme):
            return reason
        if layer == "linear" and readers[0].inputs[1] is not value:
            return f"it is read by {'/'.join(kinds)}, not by a product"
        if any(tensor.padding):
            return "it is padded"
        return ""

    def _rewrite(self, value: ir.Value, scheme: Scheme, factors: np.ndarray | None, rounded: _Rounded) -> None:
        """Give one weight its scheme, by what reads it."""
        readers, tensor = value.consumers(), value.const_value
        node = readers[0]
        assert isinstance(tensor, LazyWeight)
        codes = _Codes(value, tensor, scheme, _Encoding(tensor.weight, scheme, self.calibration, factors))
        if node.op_type == "Conv":
            _convolve(readers, codes)
        elif node.op_type == "Gather":
            _look_up(node, codes)
        elif scheme.block is not None:
            _multiply_blocks(_as_product(node), codes)
        elif scheme.dynamic_activations:
            _multiply_rounded(_as_product(node), codes, rounded)
        else:
            _multiply(_as_product(node), codes)
        assert value.name is not None
        del codes.graph.initializers[value.name]


_Rounded = dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]]
"""Inputs that are rounded to 8 bits already: their levels, scale and zero point."""


@dataclass(frozen=True)
class _Codes:
    """A weight's initializers, made as a rewrite asks for them.

    Attributes:
        value: the weight that they replace.
        tensor: that weight.
        scheme: how it is stored.
        encoding: its codes and scales.
    """

    value: ir.Value
    tensor: LazyWeight
    scheme: Scheme
    encoding: _Encoding

    @property
    def graph(self) -> ir.Graph:
        assert self.value.graph is not None
        return self.value.graph

    @property
    def dtype(self) -> ir.DataType:
        """What its product computes in."""
        return self.tensor.dtype

    @property
    def rows(self) -> int:
        return self.tensor.weight.shape[0]

    @property
    def columns(self) -> int:
        return self.tensor.weight.elements // self.rows

    def initializer(self, suffix: str, dtype: ir.DataType, shape: tuple[int, ...], form: str) -> ir.Value:
        tensor = self.encoding.part(f"{self.value.name}.{suffix}", dtype, shape, form)
        new = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)
        self.graph.initializers.add(new)
        return new


def _unsigned_zero(graph: ir.Graph) -> ir.Value:
    """The code that stands for zero in all unsigned 8-bit codes of a graph."""
    name = "unsigned_zero"
    if name not in graph.initializers:
        tensor = ir.Tensor(np.array(UNSIGNED_ZERO, np.uint8), name=name)
        graph.initializers.add(ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor))
    return graph.initializers[name]


def _convolve(nodes: Sequence[ir.Node], weight: _Codes) -> None:
    """Restore the weight once, before the first of its convolutions."""
    codes = weight.initializer("int8", ir.DataType.INT8, weight.tensor.weight.shape, "rows")
    scales = weight.initializer("scales", weight.dtype, (weight.rows,), "scales")
    restore = _node("DequantizeLinear", [codes, scales], {"axis": 0}, weight.dtype)
    restore.outputs[0].shape = ir.Shape(weight.tensor.weight.shape)
    weight.graph.insert_before(_first(nodes), restore)
    for node in nodes:
        node.replace_input_with(1, restore.outputs[0])


def _first(nodes: Sequence[ir.Node]) -> ir.Node:
    """Of nodes of one graph, that which stands before the others."""
    if len(nodes) == 1:
        return nodes[0]
    assert nodes[0].graph is not None
    wanted = set(nodes)
    return next(node for node in nodes[0].graph if node in wanted)


def _look_up(node: ir.Node, weight: _Codes) -> None:
    codes = weight.initializer("int8", ir.DataType.INT8, weight.tensor.weight.shape, "rows")
    scales = weight.initializer("scales", weight.dtype, (weight.rows, 1), "scales")
    ids = node.inputs[1]
    gathered, scale = _node("Gather", [codes, ids], {}, ir.DataType.INT8), _node("Gather", [scales, ids], {}, weight.dtype)
    widen = _node("Cast", [gathered.outputs[0]], {"to": weight.dtype}, weight.dtype)
    product = _node("Mul", [widen.outputs[0], scale.outputs[0]], {}, weight.dtype)
    _replace(node, [gathered, scale, widen, product])


def _multiply(node: ir.Node, weight: _Codes) -> None:
    codes = weight.initializer("int8", ir.DataType.INT8, (weight.columns, weight.rows), "transposed")
    scales = weight.initializer("scales", weight.dtype, (weight.rows,), "scales")
    widen = _node("Cast", [codes], {"to": weight.dtype}, weight.dtype)
    if weight.dtype == ir.DataType.FLOAT16:
        scaled = _node("Mul", [widen.outputs[0], scales], {}, weight.dtype)
        _replace(node, [widen, scaled, _node("MatMul", [node.inputs[0], scaled.outputs[0]], {}, weight.dtype)])
        return
    product = _node("MatMul", [node.inputs[0], widen.outputs[0]], {}, weight.dtype)
    _replace(node, [widen, product, _node("Mul", [product.outputs[0], scales], {}, weight.dtype)])


def _multiply_rounded(node: ir.Node, weight: _Codes, rounded: _Rounded) -> None:
    codes = weight.initializer("uint8", ir.DataType.UINT8, (weight.columns, weight.rows), "transposed unsigned")
    scales = weight.initializer("scales", weight.dtype, (weight.rows,), "scales")
    middle = _unsigned_zero(weight.graph)
    x = node.inputs[0]
    assert x is not None
    nodes = []
    if x not in rounded:
        rounding = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, metadata_props={STAMP: "QuantizeWeights"})
        nodes.append(rounding)
        rounded[x] = (rounding.outputs[0], rounding.outputs[1], rounding.outputs[2])
    levels, scale, zero = rounded[x]
    product = _node("MatMulInteger", [levels, codes, zero, middle], {}, ir.DataType.INT32)
    cast = _node("Cast", [product.outputs[0]], {"to": weight.dtype}, weight.dtype)
    both = _node("Mul", [scale, scales], {}, weight.dtype)
    _replace(node, [*nodes, product, cast, both, _node("Mul", [cast.outputs[0], both.outputs[0]], {}, weight.dtype)])


def _multiply_blocks(node: ir.Node, weight: _Codes) -> None:
    scheme, rows, columns = weight.scheme, weight.rows, weight.columns
    assert scheme.block is not None
    blocks = -(-columns // scheme.block)
    shape = (rows, blocks, scheme.block * scheme.bits // 8)
    codes = weight.initializer(f"int{scheme.bits}", ir.DataType.UINT8, shape, "blocks")
    scales = weight.initializer("scales", weight.dtype, (rows * blocks,), "block scales")
    attributes = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": scheme.block, "accuracy_level": 4}
    inputs = [node.inputs[0], codes, scales]
    if scheme.zero_points:
        packed = -(-blocks * scheme.bits // 8)
        inputs.append(weight.initializer("zeros", ir.DataType.UINT8, (rows * packed,), "block zeros"))
    _replace(node, [_node("MatMulNBits", inputs, attributes, weight.dtype, "com.microsoft")])


def _as_product(node: ir.Node) -> ir.Node:
    """A MatMul as it is; a Gemm (transB = 1, as linear layers of matrices are traced) as MatMul and Add.

    Stock quantizers skip Gemm, which in an MMDiT leaves the AdaLN layers, a third of the weights, in floating point.
    """
    if node.op_type == "MatMul":
        return node
    x, weight, bias = (*node.inputs, None)[:3]
    dtype = node.outputs[0].dtype
    product = _node("MatMul", [x, weight], {}, dtype)
    nodes = [product]
    if bias is not None:
        nodes.append(_node("Add", [product.outputs[0], bias], {}, dtype))
    _replace(node, nodes)
    return product


def _node(
    kind: str, inputs: list[ir.Value | None], attributes: Mapping[str, object], dtype: ir.DataType | None, domain: str = ""
) -> ir.Node:
    node = ir.node(kind, inputs, dict(attributes), domain=domain, metadata_props={STAMP: "QuantizeWeights"})  # type: ignore[arg-type]
    if dtype is not None:
        node.outputs[0].type = ir.TensorType(dtype)
    return node


def _replace(node: ir.Node, nodes: list[ir.Node]) -> None:
    graph = node.graph
    assert graph is not None
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])
