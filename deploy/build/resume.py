"""Graphs that an interrupted build finished: what they depend on, and whether they are still whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import msgspec

from deploy.build.plan import Plan
from deploy.bundle.manifest import FileRecord, GraphRecord, KeptRecord
from exporters.choices import FormatName
from exporters.hashing import hash_file
from exporters.layouts.spec import GraphSpec
from quantization.files import write_bytes

TOOLS = ("flash-deploy", "torch", "diffusers", "transformers", "onnx-ir", "onnxscript", "onnxruntime")
FORMAT_TOOLS: dict[FormatName, tuple[str, ...]] = {"onnx": (), "coreml": ("coremltools",)}
PATTERN = "*.done.json"


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A graph that was written: what the next build of the same needs to take it over.

    ``places`` are those of :class:`deploy.build.draft.WrittenGraph`.
    """

    key: str
    graph: GraphRecord
    files: tuple[FileRecord, ...]
    kept: tuple[KeptRecord, ...]
    places: dict[str, tuple[int, int]]


def tools(form: FormatName) -> tuple[str, ...]:
    """The packages that a bundle of a format is made with."""
    return TOOLS + FORMAT_TOOLS[form]


def resume_key(plan: Plan, graph: GraphSpec, fingerprint: str) -> str:
    """What a finished graph depends on; equal keys mean equal graphs.

    Args:
        plan: what is built.
        graph: the graph.
        fingerprint: of the student.
    """
    content = [
        fingerprint,
        graph.name,
        graph.path,
        asdict(plan.options),
        [(rule.component, rule.weights, rule.scheme.name) for rule in plan.profile.rules],
        plan.compute,
        plan.request.format,
        plan.stages,
        plan.system,
        plan.attention,
        plan.opset,
        msgspec.to_builtins(plan.tier),
        plan.measures(graph),  # what is measured may get more operators in fp32
        None if plan.calibration is None else msgspec.to_builtins(plan.calibration.recipe),
        [metadata.version(tool) for tool in tools(plan.request.format)],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def can_resume(partial: Path) -> bool:
    """Whether an earlier build finished some graph here."""
    return any(partial.glob(PATTERN))


def mark_finished(partial: Path, graph: GraphSpec, done: Done) -> None:
    """Let the next build know."""
    write_bytes(_file(partial, graph), msgspec.json.encode(done))


def finished(partial: Path, graph: GraphSpec, key: str) -> Done | None:
    """A graph that an earlier build finished, if it is the one wanted and still as it was written."""
    try:
        done = msgspec.json.decode(_file(partial, graph).read_bytes(), type=Done)
        whole = all(hash_file(partial / record.path) == record.sha256 for record in done.files)
    except (OSError, msgspec.MsgspecError):
        return None
    return done if whole and done.key == key else None


def forget(partial: Path) -> None:
    """Remove what only the next build would need."""
    for file in partial.glob(PATTERN):
        file.unlink()


def _file(partial: Path, graph: GraphSpec) -> Path:
    return partial / f"{graph.name}.done.json"
