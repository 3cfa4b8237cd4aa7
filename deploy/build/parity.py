"""Which graphs a build measures against diffusers, and what a graph must reach."""

from __future__ import annotations

from exporters.choices import FormatName
from exporters.layouts.spec import GraphSpec

REQUIRED_DB: dict[FormatName, dict[str, float]] = {"onnx": {"fp32": 100.0, "fp16": 50.0}, "coreml": {"fp32": 90.0, "fp16": 45.0}}
"""What each stored precision must reach against diffusers in fp32. Core ML programs of fp16 weights compute in fp16 as well.
A profile with integer schemes promises nothing: its figures are reported."""
LIMIT_BYTES = 1 << 30
"""Graphs whose measurement needs more memory than this are measured only on demand, so that a build of any size stays small."""


def parity_note(wanted: str, graph: GraphSpec) -> str:
    """Why a graph is not measured in the build; empty where it is.

    Args:
        wanted: ``auto``, ``always`` or ``never``.
        graph: the graph.
    """
    if wanted == "never":
        return "not wanted"
    needed = parity_bytes(graph)
    return f"would take {needed / 1e9:.1f} GB of memory" if wanted == "auto" and needed > LIMIT_BYTES else ""


def parity_bytes(graph: GraphSpec) -> int:
    """Memory that measuring a graph takes, roughly: fp32 weights in torch and twice in onnxruntime, and some activations at once.

    Sixteen activations is what a full-size VAE decoder at 512 px holds in onnxruntime (2.4 GB with its weights): those that are
    alive at once, and what convolutions lay out anew.
    """
    return 4 * (3 * graph.parameters + 16 * graph.largest_activation)
