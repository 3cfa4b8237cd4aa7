"""Trace a graph without touching a weight: everything is on the meta device until the file is written.

What the exporter returns becomes plain ONNX with nothing of torch in it, and that is bound to the student's weights. A trace that
is kept on the disk (:mod:`exporters.onnx.trace_cache`) is that ONNX, so that a kept trace and a new one go the same way.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import opset23 as op

from exporters.choices import TRACED
from exporters.layouts.spec import GraphSpec, Port
from exporters.onnx.trace_cache import trace_cache
from exporters.onnx.trace_key import trace_key
from exporters.onnx.weights import LazyWeight
from exporters.restructure import attention as _registers_the_operator  # noqa: F401
from exporters.restructure.base import set_precision
from exporters.student.weights.weight import Weight

# 23 is the first opset with Attention and RMSNormalization, and 24 decomposes the latter again (torch 2.13); exporters.onnx.opset
# makes older ones of it. The IR version is that of opset 21: every runtime that has the opset reads it, and onnxruntime-web too.
OPSET, IR_VERSION = TRACED, 10
_DTYPES = {"float32": torch.float32, "int64": torch.int64}
_IR_DTYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}


def trace(
    spec: GraphSpec,
    compute: torch.dtype,
    prepare: Callable[[torch.nn.Module], None] | None = None,
    wide: Collection[str] = (),
) -> ir.Model:
    """Trace one graph.

    Args:
        spec: what to trace.
        compute: type of matrices and what they compute in; see :mod:`exporters.restructure.base`.
        prepare: chooses other forms of the module's parts, for a target that is not onnxruntime.
        wide: parts of the module that compute in fp32 all the same.

    Returns:
        The model as the exporter leaves it, but that every initializer knows how to read its weight.
    """
    module = _prepared(spec, compute, prepare, wide)
    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(_kept_or_exported(module, spec)))
    _bind_weights(model, spec.weights(module), spec)
    _name_ports(model, spec)
    model.ir_version = IR_VERSION
    return model


def _prepared(
    spec: GraphSpec, compute: torch.dtype, prepare: Callable[[torch.nn.Module], None] | None, wide: Collection[str]
) -> Any:
    """The module in the form that is traced, on the meta device."""
    with torch.device("meta"):
        module: Any = spec.module()
    set_precision(module, compute, wide)
    if prepare is not None:
        prepare(module)
    return module.eval()


def _kept_or_exported(module: torch.nn.Module, spec: GraphSpec) -> bytes:
    """The module as a serialised ONNX model, traced where no earlier trace of the same is kept."""
    cache = trace_cache()
    key = None if cache is None else trace_key(module, spec, _exported)
    if cache is None or key is None:
        return _exported(module, spec)
    kept = cache.get(key)
    if kept is None:
        kept = _exported(module, spec)
        cache.put(key, kept)
    return kept


def _exported(module: torch.nn.Module, spec: GraphSpec) -> bytes:
    """Trace the module to a serialised ONNX model whose weights are named and not there."""
    examples, shapes = _examples(spec)
    with _quiet(), torch.no_grad():
        exported = torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # our own passes do it, without reading weights
            verbose=False,
            custom_translation_table={torch.ops.flash_deploy.attention.default: _attention},
        )
    assert program is not None
    model = program.model
    ClearMetadataAndDocStringPass()(model)  # stack traces of the trace: most of its bytes
    for name, value in model.graph.initializers.items():
        tensor: Any = value.const_value
        if tensor.raw.is_meta:
            value.const_value = ir.ExternalTensor("", None, None, tensor.dtype, shape=tensor.shape, name=name)
    serialised: bytes = ir.to_proto(model).SerializeToString()
    return serialised


def _attention(query, key, value, bias, num_heads: int, scale: float, causal: bool):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """``flash_deploy::attention`` as ai.onnx Attention with packed heads (three-dimensional inputs)."""
    outputs = op.Attention(
        query, key, value, bias, q_num_heads=num_heads, kv_num_heads=num_heads, scale=scale, is_causal=int(causal)
    )
    return outputs[0]


def _examples(spec: GraphSpec) -> tuple[list[torch.Tensor], tuple[dict[int, Any], ...]]:
    """Meta tensors of the inputs' shapes; symbolic sizes get unlike even numbers, so that none is taken for another."""
    names = sorted({size for port in spec.inputs for size in port.shape if isinstance(size, str)})
    sizes = {name: 6 + 4 * i for i, name in enumerate(names)}
    picture = {"height": 8 * sizes.get("latent_height", 6), "width": 8 * sizes.get("latent_width", 10)}
    sizes.update({name: size for name, size in picture.items() if name in sizes})
    examples = [
        torch.empty([sizes[d] if isinstance(d, str) else d for d in port.shape], dtype=_DTYPES[port.dtype], device="meta")
        for port in spec.inputs
    ]
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, size in enumerate(port.shape) if isinstance(size, str)} for port in spec.inputs
    )
    return examples, dynamic


def _bind_weights(model: ir.Model, weights: Mapping[str, Weight], spec: GraphSpec) -> None:
    for name, value in model.graph.initializers.items():
        assert value.dtype is not None
        if name not in weights:  # a constant that the trace made, for example a scalar
            assert not isinstance(value.const_value, ir.ExternalTensor), f"{spec.name}: {name} has no weight behind it"
        elif value.dtype.is_floating_point():
            value.const_value = LazyWeight(weights[name], value.dtype, name)
        else:
            value.const_value = ir.Tensor(weights[name].load(), name=name)


def _name_ports(model: ir.Model, spec: GraphSpec) -> None:
    """Give inputs and outputs the names, types and symbolic sizes that the table promises."""
    for values, ports in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        assert len(values) == len(ports), f"{spec.name}: {len(values)} traced, {len(ports)} promised"
        for value, port in zip(values, ports, strict=True):
            _name_port(value, port)


def _name_port(value: ir.Value, port: Port) -> None:
    assert value.dtype == _IR_DTYPES[port.dtype], f"{port.name}: traced as {value.dtype}"
    value.name = port.name
    value.shape = ir.Shape(port.shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns of things that are so on purpose (meta tensors, an opaque operator)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
