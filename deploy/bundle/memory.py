"""What a generation takes at its peak, predicted; needs neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

RUNTIME_BYTES = 60_000_000
"""The process before any graph: Python, numpy, onnxruntime, tokenizers (python -m benchmarks.studies.memory_budget)."""


class _Sized(Protocol):
    @property
    def memory_bytes(self) -> int: ...


def peak_memory_bytes(graphs: Iterable[_Sized]) -> int:
    """What a generation takes at its peak, predicted: graphs are loaded one after another."""
    return RUNTIME_BYTES + max(graph.memory_bytes for graph in graphs)
