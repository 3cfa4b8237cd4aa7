"""Which operations of a program cannot compute in fp16: those that read or make what :mod:`exporters.ranges` calls too large.

The programs of a draft (matrices in fp16, everything else in fp32) are run by the evaluator.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx_ir as ir

from exporters.coreml.chain import run_chain
from exporters.coreml.evaluate import Audit, Program, compare, open_package
from exporters.coreml.package import write_package
from exporters.coreml.program import ProgramOptions, StageProgram, to_programs
from exporters.ranges import LIMIT, Arrays, Rehearsal
from quantization.profile import uniform


def wide_nodes(rehearsal: Rehearsal, graph: str, model: ir.Model, options: ProgramOptions) -> set[ir.Node]:
    """The nodes of a model that cannot compute in fp16; what it makes becomes known to the rehearsal."""
    plain = ProgramOptions(uniform("fp16"), "fp32", options.system, attention=options.attention)
    with tempfile.TemporaryDirectory() as folder:
        programs = to_programs(model, plain)
        packages = [write_package(program, Path(folder) / f"{i}.mlpackage") for i, program in enumerate(programs)]
        audit = Audit()
        _play(rehearsal, graph, [open_package(package) for package in packages], audit)
    return _beyond(programs, audit)


def play_packages(rehearsal: Rehearsal, graph: str, packages: Sequence[Path]) -> None:
    """Let a finished graph make what the graphs after it need."""
    _play(rehearsal, graph, [open_package(package) for package in packages], None)


def nodes_by_loss(programs: Sequence[StageProgram], packages: Sequence[Path], given: Arrays) -> list[ir.Node]:
    """The nodes of written programs whose results are not those of fp32, those first that are furthest from them.

    Args:
        programs: the stages.
        packages: where each was written.
        given: what the first stage takes.
    """
    losses: dict[ir.Node, float] = {}
    values = dict(given)
    for program, package in zip(programs, packages, strict=True):
        stage = open_package(package)
        for finding in compare(stage, {port.name: values[port.name] for port in stage.inputs}, drop_db=-math.inf).findings:
            if (node := program.origins.get(finding.name)) is not None:
                losses[node] = min(losses.get(node, math.inf), finding.after_db)
        values |= run_chain([stage], values, "fp32")
    return sorted(losses, key=losses.__getitem__)


def first_overflow(packages: Sequence[Path], given: Arrays, function: str = "main") -> str:
    """The first operation of a graph's packages whose result is finite in fp32 and not in fp16."""
    values = dict(given)
    for package in packages:
        stage = open_package(package, function)
        for finding in compare(stage, {port.name: values[port.name] for port in stage.inputs}).findings:
            if finding.nonfinite:
                return f"{package.stem}: {finding.kind} {finding.name}"
        values |= run_chain([stage], values, "fp32")
    return "between its packages"


def _play(rehearsal: Rehearsal, graph: str, stages: list[Program], audit: Audit | None) -> None:
    outputs = [port.name for port in stages[-1].outputs]

    def run(given: Arrays) -> Arrays:
        values = run_chain(stages, given, "fp32", audit)
        return {name: values[name] for name in outputs}

    rehearsal.play(graph, run)


def _beyond(programs: Iterable[StageProgram], audit: Audit) -> set[ir.Node]:
    """The nodes that make what is too large, and those that read it."""
    programs = list(programs)
    origins = {name: node for program in programs for name, node in program.origins.items()}
    readers = {name: nodes for program in programs for name, nodes in program.readers.items()}
    large = [record.name for record in audit.records if record.name in origins and not record.amax <= LIMIT]  # NaN is large
    return {origins[name] for name in large} | {node for name in large for node in readers.get(name, ())}
