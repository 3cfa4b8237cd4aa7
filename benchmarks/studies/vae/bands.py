"""What a VAE's graph takes in memory and time, computed at once and in bands of rows: the factors of exporters/onnx/memory.py.

    flash-deploy make-student --preset mid --layers 1 --no-t5 -o student
    python -m benchmarks.studies.vae.bands student --pixels 512 --bands 1 --bands 8 --bands 16

Each graph runs in fresh processes, sampled from outside; rounds are interleaved. Times are of the process's CPUs. A graph of
operators that grew with its bands would show in "loading".
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.studies.full_size import peak_memory
from exporters.layouts.plan import plan_graphs
from exporters.layouts.spec import GraphOptions, GraphSpec
from exporters.onnx.memory import memory_bytes
from exporters.onnx.passes import PassOptions, clean_up
from exporters.onnx.trace import trace
from exporters.onnx.writer import write
from exporters.student.open import open_student
from exporters.student.student import Student
from quantization.profile import uniform

GRAPHS = ("vae_decoder", "vae_encoder")
RUN = """
import sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
began = time.process_time()
session = onnxruntime.InferenceSession(sys.argv[1], options)
loaded = time.process_time()
[port] = session.get_inputs()
session.run(None, {port.name: numpy.random.default_rng(0).random(port.shape, numpy.float32)})
print(loaded - began, time.process_time() - loaded)
"""


def graphs(student: Student, pixels: int, bands: int) -> list[GraphSpec]:
    """Both halves of the VAE."""
    clip = student.configs["text_encoder"]["max_position_embeddings"]
    options = GraphOptions(
        "native",
        pixels,
        pixels,
        (1000.0,),
        clip_tokens=clip,
        keep_t5=False,
        max_sequence_length=256,
        vae_bands=bands,
        vae_encoder=True,
    )
    return [spec for spec in plan_graphs(student, options) if spec.name in GRAPHS]


def main() -> None:
    """Write, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--bands", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    student, predicted, files = open_student(options.student), {}, {}
    with tempfile.TemporaryDirectory(dir=options.student.resolve().parent) as work:
        for bands in options.bands or (1, 8, 16):
            for spec in graphs(student, options.pixels, bands):
                model, _ = clean_up(trace(spec, torch.float32), PassOptions(uniform("fp32")))
                predicted[spec.name, bands] = memory_bytes(model, spec), len(model.graph)
                files[spec.name, bands] = Path(work) / str(bands) / spec.path
                write(model, Path(work) / str(bands), spec.path)
        runs: dict[tuple[str, int], list[tuple[float, ...]]] = {key: [] for key in files}
        for _ in range(options.rounds):
            for key, file in files.items():
                anonymous, _, printed = peak_memory([sys.executable, "-c", RUN, str(file), str(options.threads)])
                runs[key].append((anonymous, *map(float, printed.split())))
    print("| graph | bands | operators | anonymous, peak | predicted, no runtime | loading, CPU | one run, CPU | over one |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, bands), measured in runs.items():
        anonymous, loading, seconds = (statistics.median(column) for column in zip(*measured, strict=True))
        one = statistics.median(run[2] for run in runs[name, min(count for graph, count in runs if graph == name)])
        held, operators = predicted[name, bands]
        figures = f"{anonymous / 1e6:.0f} MB | {held / 1e6:.0f} MB | {loading:.1f} s | {seconds:.1f} s | {seconds / one:.2f}"
        print(f"| {name} | {bands} | {operators} | {figures} |")


if __name__ == "__main__":
    main()
