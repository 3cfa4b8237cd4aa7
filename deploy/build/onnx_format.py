"""How a graph becomes one ``.onnx`` file and one file of weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.build.draft import Draft, Progress, WrittenGraph, kept_records
from deploy.bundle.manifest import FileRecord, GraphRecord, PortRecord
from exporters.layouts.spec import GraphSpec

if TYPE_CHECKING:
    from deploy.build.plan import Plan
    from deploy.build.resume import Done
    from exporters.half import Ranges
    from exporters.onnx.quantize import Kept
    from exporters.onnx.writer import Shared


class OnnxFormat:
    """The format ``onnx``.

    Args:
        plan: what is built.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._shared: dict[str, Shared] = {}

    def draft(self, graph: GraphSpec) -> Draft:
        """Trace a graph and store its weights' places in their schemes."""
        import torch

        from exporters.onnx.passes import PassOptions, clean_up
        from exporters.onnx.trace import trace
        from exporters.onnx.writer import Shared, identities

        plan = self._plan
        half = plan.compute == "fp16"
        wide = self._parts_in_fp32(graph) if half else frozenset()
        model = trace(graph, torch.float16 if half else torch.float32, wide=wide)
        options = PassOptions(
            profile=plan.profile,
            attention=plan.tier.attention,
            calibration=plan.calibration,
            unalias_rows=plan.tier.compute == "fp32",
            opset=plan.opset,
        )
        model, kept = clean_up(model, options)
        self._shared[graph.name] = Shared(graph.path, identities(model))
        return _OnnxDraft(graph, model, kept, wide, self._shared)

    def take_over(self, done: Done) -> None:
        """Graphs of other sizes share its weights."""
        from exporters.onnx.writer import Shared

        self._shared[done.graph.name] = Shared(done.graph.path, done.places)

    def skip(self, folder: Path, record: GraphRecord) -> None:
        """Nothing: each graph is a matter of its own."""

    def join(self, folder: Path, graphs: Sequence[Done]) -> list[Done]:
        """Nothing: what is shared was never written twice."""
        return [*graphs]

    @functools.cached_property
    def _ranges(self) -> Ranges:
        from exporters.half import Ranges

        return Ranges(self._plan.student, self._plan.options, self._plan.sampling)

    def _parts_in_fp32(self, graph: GraphSpec) -> frozenset[str]:
        """The parts of a graph that compute in fp32 beside others in fp16: by rule, by range, and to be right."""
        from exporters.half import HalfGraph, parts_ruled_fp32
        from exporters.reference.parity import reference_cases

        plan = self._plan
        wide = parts_ruled_fp32(graph, plan.profile) | self._ranges.too_wide(graph.name)
        half = HalfGraph(graph, plan.profile, frozenset(wide))
        if plan.required_db is not None and plan.measures(graph):
            cases = reference_cases(graph, plan.student, plan.options, texts=plan.texts)
            half = half.widened(cases, plan.required_db)
        return half.wide


@dataclass(frozen=True)
class _OnnxDraft:
    """A cleaned-up ONNX graph.

    Attributes:
        graph: its specification.
        model: of onnx_ir.
        kept: weights that keep their floating-point form.
        wide: parts that compute in fp32 beside others in fp16.
        sharing: what the graphs so far store, by graph; where in their files is known once they are written.
    """

    graph: GraphSpec
    model: Any
    kept: Sequence[Kept]
    wide: frozenset[str]
    sharing: dict[str, Shared]

    @property
    def _shared(self) -> Shared:
        """What it reads from another graph's data."""
        from exporters.onnx.writer import NOTHING

        return self.sharing.get(self.graph.shares, NOTHING)

    @functools.cached_property
    def stored_bytes(self) -> int:
        from exporters.onnx.writer import stored_bytes

        return stored_bytes(self.model, self._shared)

    @functools.cached_property
    def disk_bytes(self) -> int:
        from exporters.onnx.writer import data_bytes

        return data_bytes(self.model, self._shared)

    @functools.cached_property
    def memory_bytes(self) -> int:
        from exporters.onnx.memory import memory_bytes

        return memory_bytes(self.model, self.graph)

    def write(self, folder: Path, progress: Progress) -> WrittenGraph:
        from exporters.onnx.writer import parameters, write

        graph = self.graph
        fields: dict[str, Any] = {  # before it is written, which changes the model
            "parameters": parameters(self.model),
            "weight_bytes": self.stored_bytes,
            "memory_bytes": self.memory_bytes,
        }
        written = write(self.model, folder, graph.path, progress, self._shared)
        self.sharing[graph.name] = written.shared
        record = GraphRecord(
            name=graph.name,
            path=graph.path,
            components=graph.components,
            inputs=tuple(PortRecord(**asdict(port)) for port in graph.inputs),
            outputs=tuple(PortRecord(**asdict(port)) for port in graph.outputs),
            fp32_operators=tuple(sorted(self.wide)),
            bands=graph.bands,
            shares=graph.shares,
            **fields,
        )
        records = tuple(FileRecord(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in written.files)
        return WrittenGraph(record, records, kept_records(self.kept), written.shared.places)
