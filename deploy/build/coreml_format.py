"""How a graph becomes ``.mlpackage`` folders: one, or several stages of the denoiser."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from deploy.build.draft import Draft, Progress, WrittenGraph, kept_records
from deploy.bundle.manifest import FileRecord, GraphRecord, PortRecord, StageRecord
from exporters.choices import WITH_FUNCTIONS
from exporters.guidance import told_guidance
from exporters.layouts.spec import GraphSpec
from exporters.reference.decibels import EQUAL_DB
from exporters.scales import unsized_graph
from exporters.student.hub import called
from quantization.errors import printable, shortened

if TYPE_CHECKING:
    from deploy.build.plan import Plan
    from deploy.build.resume import Done
    from exporters.coreml.program import About, ProgramOptions
    from exporters.ranges import Rehearsal
    from exporters.reference.case import Case


class CoreMLFormat:
    """The format ``coreml``.

    A graph that computes in fp16 is made while a picture is drawn with it, and each graph is fed with what those before it made:
    graphs are written, or skipped, in the order in which they run.

    Args:
        plan: what is built.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stored: dict[str, Collection[str]] = {}  # by graph, what others may share

    @functools.cached_property
    def _rehearsal(self) -> Rehearsal | None:
        from exporters.ranges import rehearsal_of

        plan = self._plan
        return rehearsal_of(plan.student, plan.options, plan.sampling) if plan.compute == "fp16" else None

    def draft(self, graph: GraphSpec) -> Draft:
        """Trace a graph."""
        from exporters.coreml.export import draft

        made = _CoreMLDraft(self._plan, graph, draft(graph), self._rehearsal, self._stored.get(graph.shares, ()))
        if any(other.shares == graph.name for other in self._plan.graphs):
            self._stored[graph.name] = made.weights.keys()
        return made

    def take_over(self, done: Done) -> None:
        """Graphs of other sizes share its weights."""
        self._stored[done.graph.name] = done.places.keys()

    def skip(self, folder: Path, record: GraphRecord) -> None:
        """Draw with the packages that an earlier build has written: the graphs after them are fed with what they make."""
        if self._rehearsal is not None:
            from exporters.coreml.rehearsal import play_packages

            play_packages(self._rehearsal, record.name, [folder / stage.path for stage in record.stages])

    def join(self, folder: Path, graphs: Sequence[Done]) -> list[Done]:
        """Make graphs of several sizes functions of the same packages."""
        joined = {done.graph.name: done for done in graphs}
        sharing = [graph for graph in self._plan.graphs if graph.shares and self._plan.system in WITH_FUNCTIONS]
        for graph in sharing:
            own, other = joined[graph.shares].graph, joined[graph.name]
            if len(own.stages) == len(other.graph.stages):
                joined[graph.name] = _joined(folder, own, other)
        for name in {graph.shares for graph in sharing}:
            joined[name] = replace(joined[name], files=_files(folder, joined[name].graph.stages))
        return list(joined.values())


@dataclass(frozen=True)
class _CoreMLDraft:
    """A traced graph that is to become programs.

    Attributes:
        plan: what is built.
        graph: its specification.
        model: of onnx_ir, as traced.
        rehearsal: the picture that is drawn meanwhile, where the graph computes in fp16.
        shared: weights that the graph stores which it differs from in size alone.
    """

    plan: Plan
    graph: GraphSpec
    model: Any
    rehearsal: Rehearsal | None
    shared: Collection[str]

    @functools.cached_property
    def weights(self) -> dict[str, int]:
        """Bytes of the weights; the draft becomes programs to be asked, which takes seconds at full size."""
        from exporters.coreml.export import draft_weights

        return draft_weights(self.model, self._options)

    @property
    def stored_bytes(self) -> int:
        shared = self.shared if self.plan.system in WITH_FUNCTIONS else ()
        return sum(size for name, size in self.weights.items() if name not in shared)

    @functools.cached_property
    def disk_bytes(self) -> int:
        """With the plain fp16 draft that is measured, for a while; what will be shared is written first."""
        from exporters.onnx.writer import stored_bytes

        return sum(self.weights.values()) + stored_bytes(self.model) // 2

    @functools.cached_property
    def memory_bytes(self) -> int:
        from exporters.coreml.memory import memory_bytes
        from exporters.onnx.writer import parameters

        return memory_bytes(parameters(self.model), self.graph, self.plan.compute)

    @functools.cached_property
    def _options(self) -> ProgramOptions:
        from exporters.coreml.program import ProgramOptions

        plan = self.plan
        return ProgramOptions(
            profile=plan.profile,
            compute=plan.compute,
            system=plan.system,
            calibration=plan.calibration,
            stages=plan.stages if unsized_graph(self.graph.name)[0] == "denoiser" else 1,  # the Swift client has one transformer
            attention=plan.attention,
            about=_about(plan),
        )

    def write(self, folder: Path, progress: Progress) -> WrittenGraph:
        from exporters.coreml.export import write_graph

        plan, graph = self.plan, self.graph
        gated = plan.compute == "fp16" and plan.required_db is not None and plan.measures(graph)
        check = _ParityCheck(plan, graph) if gated else None
        memory_bytes = self.memory_bytes
        programs = write_graph(graph, self.model, self._options, self.rehearsal, folder, progress, check)
        stages = tuple(
            StageRecord(
                path=stage.path,
                inputs=tuple(PortRecord(**asdict(port)) for port in stage.inputs),
                outputs=tuple(PortRecord(**asdict(port)) for port in stage.outputs),
            )
            for stage in programs.stages
        )
        ports = {port.name: port for stage in stages for port in (*stage.inputs, *stage.outputs)}
        record = GraphRecord(
            name=graph.name,
            path=stages[0].path,
            components=graph.components,
            parameters=programs.parameters,
            weight_bytes=programs.weight_bytes,
            memory_bytes=memory_bytes,
            inputs=tuple(ports[port.name] for port in graph.inputs),
            outputs=tuple(ports[port.name] for port in graph.outputs),
            stages=stages,
            fp32_operators=programs.wide,
            parity_db=None if check is None else check.db,
            parity_cases=0 if check is None else len(check.cases),
        )
        places = {name: (0, size) for name, size in programs.stored.items()}
        return WrittenGraph(record, _files(folder, stages), kept_records(programs.kept), places)


def _files(folder: Path, stages: Iterable[StageRecord]) -> tuple[FileRecord, ...]:
    from deploy.bundle.seal import record_file

    paths = sorted(file for stage in stages for file in (folder / stage.path).rglob("*") if file.is_file())
    return tuple(record_file(folder, file.relative_to(folder).as_posix()) for file in paths)


def _joined(folder: Path, own: GraphRecord, other: Done) -> Done:
    """A graph as functions of the packages of one that it differs from in size alone."""
    from exporters.coreml.evaluate import open_package
    from exporters.coreml.functions import add_function

    name, added = other.graph.name, 0
    for stage, more in zip(own.stages, other.graph.stages, strict=True):
        added += add_function(folder / stage.path, name, folder / more.path)
        open_package(folder / stage.path, name)  # which checks it
        shutil.rmtree(folder / more.path)
    stages = tuple(replace(more, path=stage.path) for stage, more in zip(own.stages, other.graph.stages, strict=True))
    graph = replace(other.graph, path=own.path, stages=stages, function=name, shares=own.name, weight_bytes=added)
    return replace(other, graph=graph, files=())


class _ParityCheck:
    """Whether a graph's packages reach what the bundle promises.

    Attributes:
        db: what those that were looked at last reach.
    """

    def __init__(self, plan: Plan, graph: GraphSpec) -> None:
        self._plan, self._graph = plan, graph
        self.db: float | None = None

    @functools.cached_property
    def cases(self) -> list[Case]:
        from exporters.reference.parity import reference_cases

        return reference_cases(self._graph, self._plan.student, self._plan.options, texts=self._plan.texts)

    @property
    def inputs(self) -> Any:
        return self.cases[0].inputs

    def passes(self, packages: Sequence[Path]) -> bool:
        from exporters.coreml.chain import chain
        from exporters.reference.parity import worst_db

        assert self._plan.required_db is not None
        db = worst_db(self.cases, chain(packages, [port.name for port in self._graph.outputs]))
        self.db = min(db, EQUAL_DB)
        return db >= self._plan.required_db


def _about(plan: Plan) -> About:
    """What every package says of itself: the student, and what it was built as."""
    from exporters.coreml.program import About

    student, options, sampling = plan.student, plan.options, plan.sampling
    licences = [f"{name}: {_first_line(text)}" for name, text in student.licences().items()]
    return About(
        description=f"; of {printable(called(student.path))}, a text-to-image student of the Stable Diffusion 3 family",
        licence="; ".join(licences) or "the student names none",
        facts={
            "flash-deploy.student": printable(called(student.path)),
            "flash-deploy.tier": plan.request.tier,
            "flash-deploy.picture": " or ".join(f"{width} x {height}" for height, width in options.picture_sizes) + " px",
            "flash-deploy.sampler": sampling.method,
            "flash-deploy.sigmas": ", ".join(f"{sigma:.6g}" for sigma in sampling.sigmas),
            "flash-deploy.guidance": told_guidance(sampling.guidance) or "none",
            "flash-deploy.profile": "; ".join(f"{r.component}/{r.weights} -> {r.scheme.name}" for r in plan.profile.rules),
            "flash-deploy.t5": "kept" if options.keep_t5 else "dropped",
        },
    )


def _first_line(text: str) -> str:
    """What a licence calls itself."""
    return next((shortened(printable(line.strip("# \t")), 120) for line in text.splitlines() if line.strip("# \t")), "")
