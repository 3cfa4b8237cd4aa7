"""What a graph takes in memory once onnxruntime has loaded it, predicted from its file.

onnxruntime's CPU provider folds a stored type that is only cast: fp16 and int8 matrices become fp32 when the session is made,
and while it is made some exist twice. Tables that are looked up stay in the mapped file. Other weights are copied into the
kernels' layouts and take what they take on disk, but for 4-bit blocks, whose scales and sums are unpacked. The factors were
measured by ``python -m benchmarks.studies.memory_budget``, which also prints how far off they are.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.choices import Compute
from exporters.layouts.spec import GraphSpec
from exporters.scales import unsized_graph
from quantization.calibration import Layer
from quantization.schemes import Scheme, parse_scheme

UNPACKED_BLOCKS = 1.25  # of blocks of at most 4 bits, over their bytes on disk
FOLDED = 1.1  # of what is folded, over its bytes in fp32
LIVE_ACTIVATIONS = {"vae_decoder": 10, "vae_encoder": 6}  # results of the largest size that are alive at once
LIVE_OTHERWISE = 5
IN_BANDS = {"vae_decoder": (3.7, 24), "vae_encoder": (2.7, 20)}  # likewise, and what is divided by the number of bands


def live_bytes(spec: GraphSpec) -> int:
    """Activations that are alive at once, at the graph's own size."""
    kind, _ = unsized_graph(spec.name)
    live: float = LIVE_ACTIVATIONS.get(kind, LIVE_OTHERWISE)
    if spec.bands > 1:
        always, divided = IN_BANDS[kind]
        live = always + divided / spec.bands
    return int(4 * live * spec.largest_activation)


def weight_bytes(layer: Layer, scheme: Scheme, shape: tuple[int, ...], compute: Compute) -> int:
    """What a weight will take in memory, known before its graph is traced: the same factors as :func:`memory_bytes`.

    Args:
        layer: what reads it.
        scheme: how it is stored.
        shape: ``[out, in, ...]``.
        compute: what its product computes in.
    """
    stored, wide = scheme.size_bytes(shape), parse_scheme(compute).size_bytes(shape)
    if scheme.name == "fp16" and compute == "fp32":
        return int(FOLDED * wide)
    if layer == "embedding":
        return 0
    if scheme.kind == "float":
        return stored
    if scheme.block is None and layer == "linear" and not scheme.dynamic_activations:
        return int(FOLDED * wide)
    return int(UNPACKED_BLOCKS * stored) if scheme.block is not None and scheme.bits <= 4 else stored


def memory_bytes(model: ir.Model, spec: GraphSpec) -> int:
    """Weights as they are held, and activations at the graph's own size, in bytes."""
    return sum(map(_held_bytes, model.graph.initializers.values())) + live_bytes(spec)


def _held_bytes(value: ir.Value) -> int:
    tensor = value.const_value
    assert tensor is not None
    readers = value.consumers()
    if readers and all(reader.op_type == "Cast" for reader in readers):
        target = readers[0].outputs[0].dtype
        return int(FOLDED * tensor.size * (4 if target is None else target.itemsize))
    if readers and all(reader.op_type == "Gather" for reader in readers):
        return 0
    if any(reader.op_type == "MatMulNBits" and reader.attributes["bits"].as_int() <= 4 for reader in readers):
        return int(UNPACKED_BLOCKS * tensor.nbytes)
    return tensor.nbytes
