"""One native denoiser step against the plainly exported transformer, in the same runtime, interleaved.

    flash-deploy make-student --preset mid -o students/mid
    python -m benchmarks.denoiser_step students/mid

Plain means: diffusers' ``SD3Transformer2DModel`` through ``torch.onnx.export(dynamo=True)`` with its defaults, fed 77 CLIP tokens
and 256 zero tokens, as diffusers feeds it without T5. At 512 px; both in fp32, unless
``--scheme`` asks for more.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import interleave, session, table

PLAIN, NATIVE = "plain export, 333 text tokens", "native denoiser, 78 text tokens"


def plain_export(student_path: Path, file: Path, pixels: int, text_tokens: int) -> Path:
    """Export diffusers' transformer as it is."""
    import torch

    from exporters.reference import reference_component
    from exporters.student import open_student

    student = open_student(student_path)
    config = student.configs["transformer"]
    transformer = reference_component(student, "transformer")
    latent = pixels // 8
    example = (
        torch.zeros(1, config["in_channels"], latent, latent),
        torch.zeros(1, text_tokens, config["joint_attention_dim"]),
        torch.zeros(1, config["pooled_projection_dim"]),
        torch.tensor([900.0]),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(transformer, example, str(file), dynamo=True, external_data=True, verbose=False)
    return file


def native_export(student_path: Path, folder: Path, pixels: int, scheme: str) -> Path:
    """Export the denoiser as a desktop-cpu bundle holds it, all weights in one scheme."""
    import torch

    from exporters.graphs import GraphOptions, plan_graphs
    from exporters.onnx.passes import PassOptions, clean_up
    from exporters.onnx.trace import trace
    from exporters.onnx.writer import write
    from exporters.student import open_student
    from quantization.profile import uniform

    options = GraphOptions("native", pixels, pixels, (1000.0,), clip_tokens=77, keep_t5=False, max_sequence_length=256)
    graph = next(graph for graph in plan_graphs(open_student(student_path), options) if graph.name == "denoiser")
    model, _ = clean_up(trace(graph, torch.float32), PassOptions(uniform(scheme), unalias_rows=True))
    write(model, folder, graph.path)
    return folder / graph.path


def _candidate(made: Any) -> Any:
    rng = np.random.default_rng(0)
    feed = {port.name: rng.standard_normal(port.shape).astype(np.float32) for port in made.get_inputs()}
    return lambda: made.run(None, feed)


def main() -> None:
    """Export both, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--scheme", action="append", default=[], help="also time the native denoiser in this scheme (repeatable)")
    parser.add_argument("--runs", type=int, default=8, help="runs of each, interleaved")
    parser.add_argument("--threads", type=int, default=None, help="threads of one operator (default: the runtime's choice)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.student.resolve().parent) as work:
        files = {PLAIN: plain_export(options.student, Path(work) / "plain.onnx", 512, 333)}
        for scheme in ["fp32", *options.scheme]:
            name = NATIVE if scheme == "fp32" else f"{NATIVE}, {scheme}"
            files[name] = native_export(options.student, Path(work) / scheme, 512, scheme)
        candidates = {name: _candidate(session(file, options.threads)) for name, file in files.items()}
        timings = interleave(candidates, options.runs)
    print(table(timings, PLAIN))


if __name__ == "__main__":
    main()
