"""Graphs exported to ONNX, and how near diffusers they come."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch

from exporters.layouts.spec import GraphOptions, GraphSpec
from exporters.onnx.passes import PassOptions, clean_up
from exporters.onnx.trace import trace
from exporters.onnx.writer import write
from exporters.reference.parity import measure, onnx_runner, reference_cases
from exporters.student.student import Student
from quantization.profile import uniform

OPTIONS = GraphOptions("native", 48, 80, (1000.0, 500.0), clip_tokens=20, keep_t5=False, max_sequence_length=9)
CPU = PassOptions(uniform("fp32"), unalias_rows=True)


def export(spec: GraphSpec, folder: Path, compute: torch.dtype = torch.float32, options: PassOptions = CPU) -> ir.Model:
    model, kept = clean_up(trace(spec, compute), options)
    assert kept == []
    write(model, folder, spec.path)
    return model


def db(spec: GraphSpec, folder: Path, student: Student, options: GraphOptions) -> float:
    return measure(reference_cases(spec, student, options), onnx_runner(folder / spec.path), spec)
