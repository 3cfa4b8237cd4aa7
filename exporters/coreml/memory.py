"""What Core ML programs take in memory once they are loaded, estimated."""

from __future__ import annotations

from exporters.choices import Compute
from exporters.layouts.spec import GraphSpec
from exporters.onnx.memory import LIVE_ACTIVATIONS

LIVE = LIVE_ACTIVATIONS["vae_decoder"]  # results of the largest size that are alive at once, as measured with onnxruntime


def memory_bytes(parameters: int, graph: GraphSpec, compute: Compute) -> int:
    """Compressed weights may be expanded to what they compute in when Core ML loads them (the tiers' file has the source).

    Args:
        parameters: how many weights the graph holds.
        graph: its specification.
        compute: what it computes in.
    """
    return (2 if compute == "fp16" else 4) * (parameters + LIVE * graph.largest_activation)
