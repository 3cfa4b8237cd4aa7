"""One native denoiser step against the plainly exported transformer, in the same runtime, interleaved.

    flash-deploy make-student --preset mid -o students/mid
    python -m benchmarks.denoiser_step students/mid

Plain means: diffusers' ``SD3Transformer2DModel`` through ``torch.onnx.export(dynamo=True)`` with its defaults, fed 77 CLIP tokens
and 256 zero tokens, as diffusers feeds it without T5. Both in fp32, at 512 px.
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


def _candidate(made: Any) -> Any:
    rng = np.random.default_rng(0)
    feed = {port.name: rng.standard_normal(port.shape).astype(np.float32) for port in made.get_inputs()}
    return lambda: made.run(None, feed)


def main() -> None:
    """Build, export, measure and print."""
    from deploy.build import BuildRequest, build

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--runs", type=int, default=8, help="runs of each, interleaved")
    parser.add_argument("--threads", type=int, default=None, help="threads of one operator (default: the runtime's choice)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.student.resolve().parent) as work:
        request = BuildRequest(
            output=Path(work) / "bundle", student=options.student, precision="fp32", height=512, width=512, parity="never"
        )
        bundle = build(request)
        plain = plain_export(options.student, Path(work) / "plain.onnx", 512, 333)
        sessions = {PLAIN: session(plain, options.threads), NATIVE: session(bundle.file("denoiser.onnx"), options.threads)}
        timings = interleave({name: _candidate(made) for name, made in sessions.items()}, options.runs)
    print(table(timings, PLAIN))


if __name__ == "__main__":
    main()
