"""A bundle's graphs measured against diffusers, as they run here and as hardware runs them that computes in fp16."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.build.parity import parity_note
from deploy.bundle.manifest import GraphRecord
from deploy.errors import CheckFailed
from exporters.choices import Compute, FormatName
from exporters.layouts.spec import GraphSpec
from exporters.reference.decibels import EQUAL_DB
from quantization.profile import Profile

if TYPE_CHECKING:
    from deploy.build.plan import Plan
    from exporters.reference.case import Case
    from exporters.reference.parity import Runner


def with_parity(plan: Plan, folder: Path, graph: GraphSpec, record: GraphRecord) -> GraphRecord:
    """The record of a written graph with its parity, measured unless the graph is too large for that.

    Args:
        plan: what is built.
        folder: with the graph's files.
        graph: the graph.
        record: what is known of it so far.

    Raises:
        CheckFailed: it does not compute what diffusers computes.
    """
    from exporters.reference.parity import reference_cases

    if note := parity_note(plan.request.parity, graph):
        note = f"not measured in the build ({note}); run flash-deploy verify --student"
        return msgspec.structs.replace(record, parity_note=note)
    db, count, form = record.parity_db, record.parity_cases, plan.request.format
    if db is None or not math.isfinite(db):  # where it is not, measuring says why
        run = graph_runner(form, folder, record)
        cases = reference_cases(graph, plan.student, plan.options, texts=plan.texts)
        db, count = graph_db(form, plan.compute, plan.profile, graph, record, folder, run, cases), len(cases)
    if plan.required_db is not None and db < plan.required_db:
        raise CheckFailed(f"{graph.name} does not compute what diffusers computes: {db} dB, required {plan.required_db} dB")
    return msgspec.structs.replace(record, parity_db=min(db, EQUAL_DB), parity_cases=count)


def graph_runner(name: FormatName, folder: Path, record: GraphRecord) -> Runner:
    """What runs a graph of a bundle for a comparison: onnxruntime's CPU provider, or the Core ML evaluator."""
    if name == "onnx":
        from exporters.reference.parity import onnx_runner

        return onnx_runner(folder / record.path)
    from exporters.coreml.chain import chain

    packages = [folder / stage.path for stage in record.stages]
    return chain(packages, [port.name for port in record.outputs], function=record.function)


def graph_db(
    name: FormatName,
    compute: Compute,
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

        packages = [folder / stage.path for stage in record.stages]
        return measure(cases, run, spec, functools.partial(first_overflow, packages, function=record.function))
    half = HalfGraph(spec, profile, frozenset(record.fp32_operators))
    return min(measure(cases, half.runner(), spec, half.overflow), measure(cases, run, spec))
