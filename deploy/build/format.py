"""The model formats that a bundle's graphs can have: how one graph is drafted, measured, written and run.

``build`` knows the order of things; what differs between ONNX and Core ML is here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from deploy.bundle.manifest import FileRecord, GraphRecord, KeptRecord, PortRecord, StageRecord
from deploy.bundle.seal import record_file
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import GraphOptions, GraphSpec
from exporters.onnx.opset import Opset
from exporters.onnx.quantize import Kept
from exporters.student.student import Student
from quantization.calibration import Calibration, Layer
from quantization.profile import Profile
from quantization.schemes import Scheme

if TYPE_CHECKING:
    from deploy.tiers.tier import Tier
    from exporters.half import Ranges
    from exporters.reference.case import Case, Texts
    from exporters.reference.parity import Runner

FormatName = Literal["onnx", "coreml"]
ComputeUnits = Literal["cpu-and-ne", "cpu-and-gpu"]
Target = Literal["iOS17", "iOS18"]
Attention = Literal["fused", "split-einsum"]
Progress = Callable[[int], None]
# What each stored precision must reach against diffusers in fp32. Core ML programs of fp16 weights compute in fp16 as well.
REQUIRED_DB: dict[FormatName, dict[str, float]] = {"onnx": {"fp32": 100.0, "fp16": 50.0}, "coreml": {"fp32": 90.0, "fp16": 45.0}}


COREML_LIVE_ACTIVATIONS = 9  # results of the largest size that are alive at once, as measured for ONNX's VAE decoder


@dataclass(frozen=True)
class WrittenGraph:
    """A graph that was written: its record, its files, and the weights that keep their floating-point form."""

    record: GraphRecord
    files: tuple[FileRecord, ...]
    kept: tuple[KeptRecord, ...]


@dataclass(frozen=True)
class Recipe:
    """What a format must know of a plan.

    Attributes:
        student: what is exported.
        tier: what for.
        options: what shapes the graphs.
        sampling: the schedule.
        profile: how weights are stored.
        calibration: what is known of the weights.
        compute: what matrices compute in.
        tokenizers: ``(graph input, folder, tokenizer)`` of each encoder.
        stages: programs that the denoiser becomes (Core ML).
        target: the oldest system that shall run them (Core ML).
        attention: one operation for all heads, or one einsum for each (Core ML).
        opset: of the graphs (ONNX).
        required_db: what each graph must reach against diffusers; none where the profile promises nothing.
        measures: whether a graph is measured in the build.
        texts: what prompts become in the student, to measure graphs on.
    """

    student: Student
    tier: Tier
    options: GraphOptions
    sampling: Sampling
    profile: Profile
    calibration: Calibration | None
    compute: Literal["fp32", "fp16"]
    tokenizers: tuple[tuple[str, str, Any], ...]
    stages: int
    target: Target
    attention: Attention
    opset: Opset
    required_db: float | None
    measures: Callable[[GraphSpec], bool]
    texts: Texts


class ModelFormat(Protocol):
    """How graphs become files of one format."""

    def draft(self, graph: GraphSpec) -> Any:
        """Trace a graph; weights are not read."""

    def stored_bytes(self, graph: GraphSpec, draft: Any) -> int:
        """Bytes of a draft's weights as they will be stored."""

    def disk_bytes(self, graph: GraphSpec, draft: Any) -> int:
        """Upper bound of what its files will take, on the way included."""

    def memory_bytes(self, graph: GraphSpec, draft: Any) -> int:
        """What it will take when it is loaded and run, foretold."""

    def write(self, folder: Path, graph: GraphSpec, draft: Any, progress: Progress) -> WrittenGraph:
        """Write a graph."""

    def skip(self, folder: Path, record: GraphRecord) -> None:
        """Take note of a graph that an earlier build has written."""


def model_format(name: FormatName, recipe: Recipe) -> ModelFormat:
    """The format of that name."""
    return OnnxFormat(recipe) if name == "onnx" else CoreMLFormat(recipe)


class OnnxFormat:
    """One ``.onnx`` file and one file of weights for each graph."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._kept: dict[str, list[Kept]] = {}
        self._wide: dict[str, frozenset[str]] = {}

    def draft(self, graph: GraphSpec) -> Any:
        import torch

        from exporters.onnx.passes import PassOptions, clean_up
        from exporters.onnx.trace import trace

        recipe = self.recipe
        wide = self._wide[graph.name] = self._parts_in_fp32(graph) if recipe.compute == "fp16" else frozenset()
        model = trace(graph, torch.float16 if recipe.compute == "fp16" else torch.float32, wide=wide)
        unalias = recipe.tier.compute == "fp32"
        options = PassOptions(recipe.profile, recipe.tier.attention, recipe.calibration, unalias, recipe.opset)
        model, self._kept[graph.name] = clean_up(model, options)
        return model

    @functools.cached_property
    def _ranges(self) -> Ranges:
        from exporters.half import Ranges

        return Ranges(self.recipe.student, self.recipe.options, self.recipe.sampling)

    def _parts_in_fp32(self, graph: GraphSpec) -> frozenset[str]:
        """The parts of a graph that compute in fp32 beside others in fp16: by rule, by range, and to be right."""
        from exporters.half import HalfGraph, parts_ruled_fp32
        from exporters.reference.parity import reference_cases

        recipe = self.recipe
        wide = parts_ruled_fp32(graph, recipe.profile) | self._ranges.too_wide(graph.name)
        half = HalfGraph(graph, recipe.profile, frozenset(wide))
        if recipe.required_db is not None and recipe.measures(graph):
            cases = reference_cases(graph, recipe.student, recipe.options, texts=recipe.texts)
            half = half.widened(cases, recipe.required_db)
        return half.wide

    def stored_bytes(self, graph: GraphSpec, draft: Any) -> int:
        from exporters.onnx.writer import stored_bytes

        return stored_bytes(draft)

    def disk_bytes(self, graph: GraphSpec, draft: Any) -> int:
        from exporters.onnx.writer import data_bytes

        return data_bytes(draft)

    def memory_bytes(self, graph: GraphSpec, draft: Any) -> int:
        from exporters.onnx.memory import memory_bytes

        return memory_bytes(draft, graph)

    def write(self, folder: Path, graph: GraphSpec, draft: Any, progress: Progress) -> WrittenGraph:
        from exporters.onnx.writer import parameters, write

        stored, memory, count = self.stored_bytes(graph, draft), self.memory_bytes(graph, draft), parameters(draft)
        files = write(draft, folder, graph.path, progress)
        record = GraphRecord(
            name=graph.name,
            path=graph.path,
            components=graph.components,
            parameters=count,
            weight_bytes=stored,
            memory_bytes=memory,
            inputs=tuple(PortRecord(**asdict(port)) for port in graph.inputs),
            outputs=tuple(PortRecord(**asdict(port)) for port in graph.outputs),
            fp32_operators=tuple(sorted(self._wide[graph.name])),
        )
        records = tuple(FileRecord(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in files)
        return WrittenGraph(record, records, _kept(self._kept[graph.name]))

    def skip(self, folder: Path, record: GraphRecord) -> None:
        pass


def coreml_memory_bytes(parameters: int, graph: GraphSpec, compute: Literal["fp32", "fp16"]) -> int:
    """Compressed weights may be expanded to what they compute in when Core ML loads them (the tiers' file has the source)."""
    return (2 if compute == "fp16" else 4) * (parameters + COREML_LIVE_ACTIVATIONS * graph.largest_activation)


class CoreMLFormat:
    """``.mlpackage`` folders: one for each graph, or several stages of the denoiser."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rehearsal = _rehearsal(recipe) if recipe.compute == "fp16" else None
        self._stored: dict[str, int] = {}  # a draft becomes programs to be asked, which takes seconds at full size

    def draft(self, graph: GraphSpec) -> Any:
        from exporters.coreml.export import draft

        return draft(graph)

    def stored_bytes(self, graph: GraphSpec, draft: Any) -> int:
        from exporters.coreml.export import draft_bytes

        if graph.name not in self._stored:
            self._stored[graph.name] = draft_bytes(draft, self._options(graph))
        return self._stored[graph.name]

    def disk_bytes(self, graph: GraphSpec, draft: Any) -> int:
        from exporters.onnx.writer import stored_bytes

        return self.stored_bytes(graph, draft) + stored_bytes(draft) // 2  # the plain fp16 draft that is measured, for a while

    def memory_bytes(self, graph: GraphSpec, draft: Any) -> int:
        from exporters.onnx.writer import parameters

        return coreml_memory_bytes(parameters(draft), graph, self.recipe.compute)

    def write(self, folder: Path, graph: GraphSpec, draft: Any, progress: Progress) -> WrittenGraph:
        from exporters.coreml.export import write_graph

        recipe = self.recipe
        gated = recipe.compute == "fp16" and recipe.required_db is not None and recipe.measures(graph)
        check = _ParityCheck(recipe, graph) if gated else None
        made = write_graph(graph, draft, self._options(graph), self.rehearsal, folder, progress, check)
        stages = tuple(
            StageRecord(
                path=stage.path,
                inputs=tuple(PortRecord(**asdict(port)) for port in stage.inputs),
                outputs=tuple(PortRecord(**asdict(port)) for port in stage.outputs),
            )
            for stage in made.stages
        )
        ports = {port.name: port for stage in stages for port in (*stage.inputs, *stage.outputs)}
        record = GraphRecord(
            name=graph.name,
            path=stages[0].path,
            components=graph.components,
            parameters=made.parameters,
            weight_bytes=made.weight_bytes,
            memory_bytes=self.memory_bytes(graph, draft),
            inputs=tuple(ports[port.name] for port in graph.inputs),
            outputs=tuple(ports[port.name] for port in graph.outputs),
            stages=stages,
            fp32_operators=made.wide,
            parity_db=None if check is None else check.db,
            parity_cases=0 if check is None else len(check.cases),
        )
        paths = sorted(file for stage in stages for file in (folder / stage.path).rglob("*") if file.is_file())
        files = tuple(record_file(folder, file.relative_to(folder).as_posix()) for file in paths)
        return WrittenGraph(record, files, _kept(made.kept))

    def skip(self, folder: Path, record: GraphRecord) -> None:
        if self.rehearsal is not None:
            from exporters.coreml.rehearsal import play_packages

            play_packages(self.rehearsal, record.name, [folder / stage.path for stage in record.stages])

    def _options(self, graph: GraphSpec) -> Any:
        from exporters.coreml.program import ProgramOptions

        recipe = self.recipe
        stages = recipe.stages if graph.name == "denoiser" else 1  # the Swift client has one transformer
        return ProgramOptions(recipe.profile, recipe.compute, recipe.target, recipe.calibration, stages, recipe.attention)


class _ParityCheck:
    """Whether a graph's packages reach what the bundle promises.

    Attributes:
        db: what those that were looked at last reach.
    """

    def __init__(self, recipe: Recipe, graph: GraphSpec) -> None:
        self._recipe, self._graph = recipe, graph
        self.db: float | None = None

    @functools.cached_property
    def cases(self) -> list[Case]:
        from exporters.reference.parity import reference_cases

        return reference_cases(self._graph, self._recipe.student, self._recipe.options, texts=self._recipe.texts)

    @property
    def inputs(self) -> Any:
        return self.cases[0].inputs

    def passes(self, packages: Sequence[Path]) -> bool:
        from exporters.coreml.chain import chain
        from exporters.reference.parity import worst_db

        assert self._recipe.required_db is not None
        db = worst_db(self.cases, chain(packages, [port.name for port in self._graph.outputs]))
        self.db = min(db, 999.0)
        return db >= self._recipe.required_db


def graph_runner(name: FormatName, folder: Path, record: GraphRecord) -> Runner:
    """What runs a graph of a bundle for a comparison: onnxruntime's CPU provider, or the Core ML evaluator."""
    if name == "onnx":
        from exporters.reference.parity import onnx_runner

        return onnx_runner(folder / record.path)
    from exporters.coreml.chain import chain

    return chain([folder / stage.path for stage in record.stages], [port.name for port in record.outputs])


def graph_db(
    name: FormatName,
    compute: str,
    profile: Profile,
    spec: GraphSpec,
    record: GraphRecord,
    folder: Path,
    run: Runner,
    cases: Sequence[Case],
) -> float:
    """A graph's worst ratio against diffusers, in dB.

    An ONNX graph that computes in fp16 is measured twice: as the file runs here, and as hardware would run it that computes in
    fp16 (:mod:`exporters.half`), which no CPU does.

    Args:
        name: the format.
        compute: what the graph computes in.
        profile: how weights are stored.
        spec: the graph.
        record: what the manifest says of it.
        folder: that its files are in.
        run: what runs them.
        cases: what it is measured on.

    Raises:
        ExportError: a result is not finite, or has another shape.
    """
    from exporters.half import HalfGraph
    from exporters.reference.parity import measure

    if compute == "fp32":
        return measure(cases, run, spec)
    if name == "coreml":
        from exporters.coreml.rehearsal import first_overflow

        return measure(cases, run, spec, functools.partial(first_overflow, [folder / stage.path for stage in record.stages]))
    half = HalfGraph(spec, profile, frozenset(record.fp32_operators))
    return min(measure(cases, half.runner(), spec, half.overflow), measure(cases, run, spec))


def unsupported(
    name: FormatName, layer: Layer, shape: tuple[int, ...], scheme: Scheme, tier: Tier, target: Target | None = None
) -> str:
    """Why a format has no form for a layer's weight in a scheme; empty where it has one."""
    if name == "onnx":
        from exporters.onnx.quantize import unsupported as onnx_unsupported

        return onnx_unsupported(layer, scheme)
    from exporters.coreml.constants import unsupported as coreml_unsupported

    assert tier.coreml is not None
    return coreml_unsupported(shape, scheme, target or tier.coreml.target)


def _kept(kept: list[Kept] | tuple[Kept, ...]) -> tuple[KeptRecord, ...]:
    return tuple(KeptRecord(component=k.component, weight=k.name, scheme=k.scheme, reason=k.reason) for k in kept)


def _rehearsal(recipe: Recipe) -> Any:
    """A picture to be drawn while programs are made."""
    from exporters.ranges import rehearsal_of

    return rehearsal_of(recipe.student, recipe.options, recipe.sampling)
