"""An exported graph against diffusers, in dB.

The reference of each graph is made of diffusers' and transformers' own modules in fp32, never of the modules that were
traced. A graph is measured on several inputs, and its worst ratio counts: on what real prompts (and a picture) give it, and on
seeded draws at the scale that it sees in use. One draw alone says little: a conditioner's ratio varies by 17 dB between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from exporters.errors import Complaint, ExportError
from exporters.layouts.spec import VAE_SCALE, GraphOptions, GraphSpec
from exporters.ranges import Arrays
from exporters.reference import native_cases, optimum_cases, swift_cases
from exporters.reference.case import Case, Inputs, Texts
from exporters.reference.decibels import FP32, snr_db
from exporters.reference.diffusers import reference_component
from exporters.scales import unsized_graph
from exporters.student.student import Student

Runner = Callable[[Arrays], list[np.ndarray]]
_CASES = {"native": native_cases.CASES, "optimum": optimum_cases.CASES, "swift": swift_cases.CASES}
DRAWS = 2  # seeded draws beside what the prompts give


def measure(cases: Sequence[Case], run: Runner, spec: GraphSpec, overflow: Callable[[Arrays], str] | None = None) -> float:
    """The worst ratio over all cases and outputs, in dB.

    Args:
        cases: what it is measured on.
        run: runs the graph.
        spec: the graph.
        overflow: of a graph that computes in fp16: finds where a result outgrew it, given a case's inputs.

    Raises:
        ExportError: as :func:`snr_db`, and where fp16 overflowed.
    """
    worst = float("inf")
    for case in cases:
        results = run(case.inputs)
        sound = all(np.isfinite(array).all() for array in case.outputs)
        if overflow is not None and sound and not all(np.isfinite(array).all() for array in results):
            complaint = Complaint(f"{spec.name}: {overflow(case.inputs)}", "outgrows fp16", "values of at most 65504")
            raise ExportError("fp16 overflows.", [complaint], FP32)
        for port, reference, got in zip(spec.outputs, case.outputs, results, strict=True):
            worst = min(worst, snr_db(reference, got, f"{spec.name}: {port.name}"))
    return worst


def worst_db(cases: Sequence[Case], run: Runner) -> float:
    """The worst ratio over all cases and outputs, in dB; minus infinity where a result overflows.

    Raises:
        ExportError: as :func:`snr_db`, of a reference that is not finite itself.
    """
    worst = float("inf")
    for case in cases:
        for reference, got in zip(case.outputs, run(case.inputs), strict=True):
            overflows = np.isfinite(reference).all() and not np.isfinite(got).all()
            worst = min(worst, float("-inf") if overflows else snr_db(reference, got))
    return worst


def onnx_runner(file: Path) -> Runner:
    """Run an ONNX file on onnxruntime's CPU provider, at its default optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)  # type: ignore[no-any-return]


def reference_cases(
    spec: GraphSpec, student: Student, options: GraphOptions, seed: int = 0, texts: Texts | None = None
) -> list[Case]:
    """Inputs and reference outputs for one graph; its components are loaded in fp32 and freed again.

    Args:
        spec: the graph.
        student: the student.
        options: the shape of its graphs.
        seed: of what is drawn.
        texts: what prompts become in the student, where that is known already.
    """
    generators = tuple(np.random.default_rng([seed, i]) for i in range(DRAWS))
    with torch.no_grad():
        models = {component: reference_component(student, component) for component in spec.components}
        inputs = Inputs(texts or Texts(student, options), generators)
        kind, size = unsized_graph(spec.name)
        if size is not None:
            options = replace(options, height=size[0] * VAE_SCALE, width=size[1] * VAE_SCALE)
        return _CASES[options.layout][kind](models, student, options, inputs)
