"""One native denoiser step against the plainly exported transformer, in the same runtime, interleaved.

    flash-deploy make-student --preset mid -o students/mid
    python -m benchmarks.studies.denoiser_step students/mid

Plain means: diffusers' ``SD3Transformer2DModel`` through ``torch.onnx.export(dynamo=True)`` with its defaults, fed 77 CLIP tokens
and 256 zero tokens, as diffusers feeds it without T5. At 512 px; both in fp32, unless ``--scheme`` or ``--openvino`` asks for
more. ``--nncf`` adds the plain export as OpenVINO's users would have it at its best: weights in int8 by NNCF, inputs rounded in
groups of 128, bf16 arithmetic, and the timestep's sinusoid computed outside in fp32 (in bf16 it costs half of the decibels).

Decibels are of the output against the same graph in fp32, on one normal input.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.measure.timing import interleave, openvino_model, session, table
from benchmarks.peers.openvino_nncf import nncf_compressed
from benchmarks.peers.plain_export import export_transformer
from exporters.reference.decibels import snr_db
from exporters.student.open import open_student

PLAIN, NATIVE = "plain export, 333 text tokens", "native denoiser, 78 text tokens"


def native_export(student_path: Path, folder: Path, pixels: int, scheme: str) -> Path:
    """Export the denoiser as a desktop-cpu bundle holds it, all weights in one scheme."""
    import torch

    from exporters.layouts.plan import plan_graphs
    from exporters.layouts.spec import GraphOptions
    from exporters.onnx.passes import PassOptions, clean_up
    from exporters.onnx.trace import trace
    from exporters.onnx.writer import write
    from exporters.student.open import open_student
    from quantization.profile import uniform

    options = GraphOptions("native", pixels, pixels, (1000.0,), clip_tokens=77, keep_t5=False, max_sequence_length=256)
    graph = next(graph for graph in plan_graphs(open_student(student_path), options) if graph.name == "denoiser")
    model, _ = clean_up(trace(graph, torch.float32), PassOptions(uniform(scheme), unalias_rows=True))
    write(model, folder, graph.path)
    return folder / graph.path


class _Step:
    """A compiled graph with one normal input, the same for every graph of the same ports."""

    def __init__(self, ports: Mapping[str, Sequence[int]], run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> None:
        rng = np.random.default_rng(0)
        self._feed = {name: rng.standard_normal(tuple(shape)).astype(np.float32) for name, shape in ports.items()}
        self._run = run

    def __call__(self) -> np.ndarray:
        return self._run(self._feed)


def _onnxruntime(file: Path, threads: int | None) -> _Step:
    loaded = session(file, threads)
    return _Step({port.name: port.shape for port in loaded.get_inputs()}, lambda feed: loaded.run(None, feed)[0])


def _openvino(file: Path, arithmetic: Literal["f32", "bf16"], threads: int | None) -> _Step:
    compiled = openvino_model(file, arithmetic, threads)
    return _Step(
        {port.get_any_name(): list(port.shape) for port in compiled.inputs}, lambda feed: compiled(feed)[compiled.outputs[0]]
    )


def main() -> None:
    """Export, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--scheme", action="append", default=[], help="also time the native denoiser in this scheme (repeatable)")
    parser.add_argument("--openvino", action="append", default=[], help="likewise, in OpenVINO; fp32 in fp32, others in bf16")
    parser.add_argument("--nncf", action="store_true", help="also time the plain export in OpenVINO with NNCF's int8")
    parser.add_argument("--runs", type=int, default=8, help="runs of each, interleaved")
    parser.add_argument("--threads", type=int, default=None, help="threads of one operator (default: the runtime's choice)")
    options = parser.parse_args()
    threads = options.threads
    with tempfile.TemporaryDirectory(dir=options.student.resolve().parent) as name:
        work = Path(name)
        student = open_student(options.student)
        plain = export_transformer(student, work / "plain.onnx", 512, 512, 333)
        steps = {PLAIN: _onnxruntime(plain, threads)}
        truths = {PLAIN: steps[PLAIN]()}
        files = {s: native_export(options.student, work / s, 512, s) for s in {"fp32", *options.scheme, *options.openvino}}
        for scheme in dict.fromkeys(["fp32", *options.scheme]):
            steps[f"{NATIVE}, {scheme}"] = _onnxruntime(files[scheme], threads)
        truths[NATIVE] = steps[f"{NATIVE}, fp32"]()
        for scheme in options.openvino:
            steps[f"{NATIVE}, {scheme}, OpenVINO"] = _openvino(files[scheme], "f32" if scheme == "fp32" else "bf16", threads)
        if options.nncf:
            outside = export_transformer(student, work / "outside.onnx", 512, 512, 333, sinusoid_outside=True)
            steps[f"{PLAIN}, NNCF int8, OpenVINO"] = _openvino(nncf_compressed(outside), "bf16", threads)
            truths[f"{PLAIN}, NNCF"] = _onnxruntime(outside, threads)()
        quality = {name: snr_db(_truth(name, truths), step()) for name, step in steps.items()}
        timings = interleave(steps, options.runs)
    print(table(timings, PLAIN, {"dB": {name: f"{db:.1f}" if np.isfinite(db) else "exact" for name, db in quality.items()}}))


def _truth(name: str, truths: Mapping[str, np.ndarray]) -> np.ndarray:
    """The fp32 output of the same graph: the longest key that the name begins with."""
    return truths[max((key for key in truths if name.startswith(key)), key=len)]


if __name__ == "__main__":
    main()
