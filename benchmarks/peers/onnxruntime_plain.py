"""The plain export in onnxruntime's CPU provider: fp32, and quantized dynamically to int8 by onnxruntime's own tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.timing import session
from benchmarks.peers.peer import Job
from exporters.student.student import Student

QUANTIZED = ("text_encoder", "text_encoder_2", "transformer")
"""The decoder stays fp32: onnxruntime's integer convolutions take several times longer than its fp32 ones."""


@dataclass(frozen=True)
class OnnxruntimePlain:
    """Four files, loaded all at once; int8 per output channel with activations rounded as they come (``quantize_dynamic``)."""

    int8: bool
    packages: tuple[str, ...] = ("torch", "diffusers", "transformers", "onnxruntime")
    kept_t5: bool = False
    has_files: bool = True

    def prepare(self, job: Job, student: Student) -> None:
        """Export, and quantize."""
        from benchmarks.peers.plain_export import CLIPS, export_clip, export_decoder, export_transformer

        folder = Path(job.folder)
        for name in CLIPS:
            export_clip(student, name, folder / f"{name}.onnx", job.clip_tokens)
        tokens = job.clip_tokens + job.max_sequence_length
        export_transformer(student, folder / "transformer.onnx", job.height, job.width, tokens)
        export_decoder(student, folder / "vae_decoder.onnx", job.height, job.width)
        if self.int8:
            for name in QUANTIZED:
                quantize_dynamically(folder / f"{name}.onnx")

    def open(self, job: Job, student: Student) -> Any:
        """A session for each file."""
        from benchmarks.peers.stand_ins import Graph, pipeline_of

        def load(name: str) -> Graph:
            loaded = session(Path(job.folder) / f"{name}.onnx", job.threads)
            return lambda inputs: loaded.run(None, inputs)  # type: ignore[no-any-return]

        return pipeline_of(student, {name: load(name) for name in (*QUANTIZED, "vae_decoder")})


def quantize_dynamically(file: Path) -> None:
    """Replace a file by its dynamically quantized form: matrix products in int8, weights per output channel."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    draft = file.with_name(f"int8_{file.name}")
    model = onnx.load(file)
    del model.graph.value_info[:]  # shapes that the exporter wrote are of the fp32 graph, and the tool infers its own
    products = ["MatMul", "Gemm"]
    quantize_dynamic(model, draft, products, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True)
    for old in (file, file.with_name(f"{file.name}.data")):
        old.unlink(missing_ok=True)
    onnx.save(onnx.load(draft), file, save_as_external_data=True, location=f"{file.name}.data")
    for old in draft.parent.glob(f"{draft.name}*"):
        old.unlink()
