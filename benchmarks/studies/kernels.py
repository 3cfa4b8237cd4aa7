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
    channels, size, groups = 128, 512, 32
    rng = np.random.default_rng(0)
    picture = rng.standard_normal((1, channels, size, size), np.float32) + np.float32(0.7)
    wide = picture.astype(np.float64).reshape(1, groups, -1)
    exact = (wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + 1e-6)

    def chain(steps: Callable[[ir.tape.Tape, ir.Value], ir.Value]) -> bytes:
        x, tape = _input("x", 1, channels, size, size), ir.tape.Tape()
        output = steps(tape, x)
        output.name, output.type = "y", ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph([x], [output], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 23}, name="g")
        content: bytes = ir.serde.serialize_model(ir.Model(graph, ir_version=10)).SerializeToString()
        return content

    def vector(tape: ir.tape.Tape, name: str, values: np.ndarray) -> ir.Value:
        return tape.initializer(ir.Tensor(values, name=name), name=name)

    def group(tape: ir.tape.Tape, x: ir.Value) -> ir.Value:
        scale, shift = (vector(tape, n, np.full(channels, v, np.float32)) for n, v in (("s", 1), ("b", 0)))
        return tape.op("GroupNormalization", [x, scale, shift], {"num_groups": groups, "epsilon": 1e-6})

    def instance(tape: ir.tape.Tape, x: ir.Value) -> ir.Value:
        scale, shift = (vector(tape, n, np.full(groups, v, np.float32)) for n, v in (("s", 1), ("b", 0)))
        grouped = tape.op("Reshape", [x, vector(tape, "g", np.array([1, groups, -1]))])
        normed = tape.op("InstanceNormalization", [grouped, scale, shift], {"epsilon": 1e-6})
        return tape.op("Reshape", [normed, vector(tape, "w", np.array(picture.shape))])

    def staged(tape: ir.tape.Tape, x: ir.Value) -> ir.Value:
        axes = [vector(tape, f"a{axis}", np.array([axis])) for axis in (3, 2)]

        def mean(value: ir.Value) -> ir.Value:
            for axis in axes:
                value = tape.op("ReduceMean", [value, axis])
            return value

        rows = tape.op("Reshape", [x, vector(tape, "g", np.array([1, groups, -1, size]))])
        centred = tape.op("Sub", [rows, mean(rows)])
        spread = mean(tape.op("Mul", [centred, centred]))
        spread = tape.op("Sqrt", [tape.op("Add", [spread, vector(tape, "e", np.array(1e-6, np.float32))])])
        return tape.op("Reshape", [tape.op("Div", [centred, spread]), vector(tape, "w", np.array(picture.shape))])

    candidates, accuracy = {}, {}
    for name, steps in {"GroupNormalization": group, "InstanceNormalization": instance, "means in two stages": staged}.items():
        loaded = session(chain(steps), threads)
        candidates[name] = functools.partial(loaded.run, None, {"x": picture})
        accuracy[name] = snr_db(exact, loaded.run(None, {"x": picture})[0].reshape(exact.shape))
    return candidates, accuracy


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
