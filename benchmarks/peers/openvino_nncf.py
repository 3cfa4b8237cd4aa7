"""The plain export in OpenVINO with NNCF's int8 weights, at its best.

Inputs of products are rounded in groups of 128, arithmetic is bf16 (OpenVINO's own choice where the CPU has it), and the
timestep's sinusoid is computed outside in fp32: in bf16 it costs half of the decibels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.timing import openvino_model
from benchmarks.peers.peer import Job
from exporters.student.student import Student

NAMES = ("text_encoder", "text_encoder_2", "transformer", "vae_decoder")


@dataclass(frozen=True)
class OpenvinoNncf:
    """Four models, compiled all at once; weights per output channel."""

    packages: tuple[str, ...] = ("torch", "diffusers", "transformers", "openvino", "nncf")
    kept_t5: bool = False
    has_files: bool = True

    def prepare(self, job: Job, student: Student) -> None:
        """Export and compress."""
        from benchmarks.peers.plain_export import CLIPS, export_clip, export_decoder, export_transformer

        folder = Path(job.folder)
        tokens = job.clip_tokens + job.max_sequence_length
        for name in CLIPS:
            nncf_compressed(export_clip(student, name, folder / f"{name}.onnx", job.clip_tokens))
        transformer = folder / "transformer.onnx"
        nncf_compressed(export_transformer(student, transformer, job.height, job.width, tokens, sinusoid_outside=True))
        nncf_compressed(export_decoder(student, folder / "vae_decoder.onnx", job.height, job.width))
        for name in NAMES:
            for file in (folder / f"{name}.onnx", folder / f"{name}.onnx.data"):
                file.unlink(missing_ok=True)

    def open(self, job: Job, student: Student) -> Any:
        """All models compiled for the CPU."""
        from benchmarks.peers.stand_ins import Graph, pipeline_of

        def load(name: str) -> Graph:
            compiled = openvino_model(Path(job.folder) / f"{name}.xml", "bf16", job.threads)
            return lambda inputs: [compiled(inputs)[port].copy() for port in compiled.outputs]

        return pipeline_of(student, {name: load(name) for name in NAMES}, sinusoid_outside=True)


def nncf_compressed(file: Path) -> Path:
    """The file with its weights in int8 per output channel, as NNCF makes them."""
    import nncf
    import openvino

    model = nncf.compress_weights(openvino.Core().read_model(str(file)), mode=nncf.CompressWeightsMode.INT8_SYM)
    target = file.with_suffix(".xml")
    openvino.save_model(model, str(target))
    return target
