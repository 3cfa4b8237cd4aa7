"""Which kernels onnxruntime's CPU provider runs fastest: the measurements behind two choices of the exporter.

    python -m benchmarks.kernels

Attention of SD3.5-Medium's joint blocks at 512 px without T5 (1024 image + 78 text tokens, 24 heads of 64 channels): how the
null token's log K gets in, and which operator computes it. Feed-forward: the second product with hidden rows that alias in the
first-level cache, and with 16 more channels.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.timing import interleave, session, table

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
    made = session(content, threads)
    rng = np.random.default_rng(0)
    feed = {port.name: rng.standard_normal(port.shape, np.float32) for port in made.get_inputs()}
    return lambda: made.run(None, feed)


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


if __name__ == "__main__":
    main()
