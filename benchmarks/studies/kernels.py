"""Which kernels onnxruntime's CPU provider runs fastest: the measurements behind two choices of the exporter.

    python -m benchmarks.studies.kernels

Attention of SD3.5-Medium's joint blocks at 512 px without T5 (1024 image + 78 text tokens, 24 heads of 64 channels): how the
null token's log K gets in, and which operator computes it. Feed-forward: the second product with hidden rows that alias in the
first-level cache, and with 16 more channels. Group norm: 128 channels at 512 px in 32 groups, time and accuracy.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.measure.timing import interleave, session, table
from exporters.reference.decibels import snr_db

TOKENS, HEADS, HEAD_DIM = 1102, 24, 64
CHANNELS, SIDE, GROUPS, EPSILON = 128, 512, 32, 1e-6
PICTURE = (1, CHANNELS, SIDE, SIDE)


def _model(node: ir.Node, inputs: list[ir.Value], constants: list[ir.Value]) -> bytes:
    output = node.outputs[0]
    output.name, output.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, [output], nodes=[node], initializers=constants, opset_imports={"": 23, "com.microsoft": 1}, name="g")
    content: bytes = ir.serde.serialize_model(ir.Model(graph, ir_version=10)).SerializeToString()
    return content


def _input(name: str, *shape: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def _constant(name: str, values: np.ndarray) -> ir.Value:
    return ir.Value(
        name=name, shape=ir.Shape(values.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.Tensor(values, name=name)
    )


def _candidate(content: bytes, threads: int) -> Any:
    loaded = session(content, threads)
    rng = np.random.default_rng(0)
    feed = {port.name: rng.standard_normal(port.shape, np.float32) for port in loaded.get_inputs()}
    return lambda: loaded.run(None, feed)


def attention_candidates(threads: int) -> dict[str, Any]:
    """Each way to compute joint attention with one weighted null token."""
    scale = HEAD_DIM**-0.5

    def packed(channels: int) -> list[ir.Value]:
        width = HEADS * channels
        return [_input("q", 1, TOKENS, width), _input("k", 1, TOKENS, width), _input("v", 1, TOKENS, HEADS * HEAD_DIM)]

    def fused(inputs: list[ir.Value], constants: list[ir.Value]) -> bytes:
        given = [*inputs, None, None, *constants] if constants else inputs
        node = ir.node("MultiHeadAttention", given, {"num_heads": HEADS, "scale": scale}, domain="com.microsoft")
        return _model(node, inputs, constants)

    def standard(inputs: list[ir.Value], constants: list[ir.Value]) -> bytes:
        node = ir.node("Attention", [*inputs, *constants], {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": scale})
        return _model(node, inputs, constants)

    bias = np.zeros((1, 1, TOKENS, TOKENS), np.float32)
    bias[..., -1] = np.log(256)
    models = {
        "MultiHeadAttention, no null token": fused(packed(HEAD_DIM), []),
        "MultiHeadAttention, two more channels": fused(packed(HEAD_DIM + 2), []),
        "MultiHeadAttention, additive bias": fused(packed(HEAD_DIM), [_constant("bias", bias)]),
        "ai.onnx Attention, two more channels": standard(packed(HEAD_DIM + 2), []),
        "ai.onnx Attention, additive bias": standard(packed(HEAD_DIM), [_constant("bias", bias)]),
    }
    return {name: _candidate(content, threads) for name, content in models.items()}


def feed_forward_candidates(threads: int) -> dict[str, Any]:
    """The second product of a feed-forward, with and without aliasing rows."""

    def product(hidden: int) -> bytes:
        x = _input("x", 1024, hidden)
        weight = _constant("w", np.random.default_rng(0).standard_normal((hidden, 1536), np.float32))
        return _model(ir.node("MatMul", [x, weight]), [x], [weight])

    return {f"{hidden} hidden channels": _candidate(product(hidden), threads) for hidden in (6144, 6160)}


def group_norm_candidates(threads: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Each way to normalise groups of a million values, and its accuracy against fp64 in dB."""
    rng = np.random.default_rng(0)
    picture = rng.standard_normal(PICTURE, np.float32) + np.float32(0.7)
    wide = picture.astype(np.float64).reshape(1, GROUPS, -1)
    exact = (wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + EPSILON)
    candidates, accuracy = {}, {}
    for name, norm in NORMS.items():
        loaded = session(_norm_model(norm), threads)
        candidates[name] = functools.partial(loaded.run, None, {"x": picture})
        accuracy[name] = snr_db(exact, loaded.run(None, {"x": picture})[0].reshape(exact.shape))
    return candidates, accuracy


def _norm_model(norm: Callable[[ir.tape.Tape, ir.Value], ir.Value]) -> bytes:
    x, tape = _input("x", *PICTURE), ir.tape.Tape()
    output = norm(tape, x)
    output.name, output.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [output], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 23}, name="g")
    content: bytes = ir.serde.serialize_model(ir.Model(graph, ir_version=10)).SerializeToString()
    return content


def _vector(tape: ir.tape.Tape, name: str, values: np.ndarray) -> ir.Value:
    return tape.initializer(ir.Tensor(values, name=name), name=name)


def _scale_and_shift(tape: ir.tape.Tape, count: int) -> tuple[ir.Value, ir.Value]:
    return _vector(tape, "s", np.ones(count, np.float32)), _vector(tape, "b", np.zeros(count, np.float32))


def _group_norm(tape: ir.tape.Tape, x: ir.Value) -> ir.Value:
    return tape.op("GroupNormalization", [x, *_scale_and_shift(tape, CHANNELS)], {"num_groups": GROUPS, "epsilon": EPSILON})


def _instance_norm(tape: ir.tape.Tape, x: ir.Value) -> ir.Value:
    scale_and_shift = _scale_and_shift(tape, GROUPS)
    grouped = tape.op("Reshape", [x, _vector(tape, "g", np.array([1, GROUPS, -1]))])
    normed = tape.op("InstanceNormalization", [grouped, *scale_and_shift], {"epsilon": EPSILON})
    return tape.op("Reshape", [normed, _vector(tape, "w", np.array(PICTURE))])


def _staged_norm(tape: ir.tape.Tape, x: ir.Value) -> ir.Value:
    axes = [_vector(tape, f"a{axis}", np.array([axis])) for axis in (3, 2)]

    def mean(value: ir.Value) -> ir.Value:
        for axis in axes:
            value = tape.op("ReduceMean", [value, axis])
        return value

    rows = tape.op("Reshape", [x, _vector(tape, "g", np.array([1, GROUPS, -1, SIDE]))])
    centred = tape.op("Sub", [rows, mean(rows)])
    spread = mean(tape.op("Mul", [centred, centred]))
    spread = tape.op("Sqrt", [tape.op("Add", [spread, _vector(tape, "e", np.array(EPSILON, np.float32))])])
    return tape.op("Reshape", [tape.op("Div", [centred, spread]), _vector(tape, "w", np.array(PICTURE))])


NORMS = {"GroupNormalization": _group_norm, "InstanceNormalization": _instance_norm, "means in two stages": _staged_norm}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="runs of each candidate, interleaved")
    parser.add_argument("--threads", type=int, default=1, help="threads of one operator")
    options = parser.parse_args()
    print("Attention, ratios to the unbiased kernel\n")
    print(table(interleave(attention_candidates(options.threads), options.runs), "MultiHeadAttention, no null token"))
    print("\nSecond product of a feed-forward, ratios to 6144 channels\n")
    print(table(interleave(feed_forward_candidates(options.threads), options.runs), "6144 hidden channels"))
    candidates, accuracy = group_norm_candidates(options.threads)
    print("\nGroup norm, ratios to GroupNormalization\n")
    print(table(interleave(candidates, options.runs), "GroupNormalization"))
    print("\nAgainst fp64: " + ", ".join(f"{name} {db:.1f} dB" for name, db in accuracy.items()))


if __name__ == "__main__":
    main()
