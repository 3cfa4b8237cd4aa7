from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.peers.diffusers_eager import DiffusersEager
from benchmarks.peers.onnxruntime_plain import QUANTIZED, OnnxruntimePlain, quantize_dynamically
from benchmarks.peers.peer import NO_T5, Job, absent, read_job
from benchmarks.peers.registry import PEERS
from benchmarks.peers.runner import _Drawing as Drawing
from benchmarks.peers.table import BEGIN, END, into, table
from benchmarks.quality.drawing import Wanted
from benchmarks.quality.pictures import PictureQuality, Quality, assess
from benchmarks.results.record import Entry, Measured, PictureResult, Results, Series
from exporters.layouts.sampling import plan_sampling
from exporters.layouts.schedule import Schedule
from exporters.student.student import Student
from exporters.student.weights.lora.source import Lora
from quantization.errors import InputError
from tests.helpers import lora_files


def job_of(student: Student, folder: Path) -> Job:
    sampling = plan_sampling(student, 64, 64, Schedule(2))
    return Job(
        student=str(student.path),
        fingerprint="f",
        height=64,
        width=64,
        sampling=sampling,
        keep_t5=False,
        max_sequence_length=16,
        clip_tokens=student.configs["text_encoder"]["max_position_embeddings"],
        folder=str(folder),
        threads=1,
    )


def test_peers_open_the_student_as_bench_was_asked_to(students: dict[str, Student], tiny_folder: Path, tmp_path: Path) -> None:
    save_file({"x.lora_A.weight": np.ones((2, 2), np.float32)}, tiny_folder / "pytorch_lora_weights.safetensors")
    plain = tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    job = msgspec.structs.replace(job_of(students["tiny"], tmp_path), student=str(tiny_folder))
    with pytest.raises(InputError, match="is a LoRA"):
        job.open_student()
    asked = msgspec.structs.replace(job, ignore_lora=True, variant="fp16")
    opened = read_job(msgspec.json.encode(asked).decode()).open_student()
    assert not opened.has_t5
    assert opened.adapters
    file = lora_files.write(
        tmp_path / "a:1.safetensors", lora_files.diffusers(lora_files.products(students["tiny"], "transformer"))
    )
    merging = msgspec.structs.replace(asked, lora=(str(Lora(file, 0.5)),))
    assert [one.scale for one in read_job(msgspec.json.encode(merging).decode()).open_student().loras] == [0.5]


def test_plain_exports_draw_what_diffusers_draws(students: dict[str, Student], tmp_path: Path) -> None:
    """fp32: 90 dB and more, as graphs reach over 100 and two steps add up. int8 of few layers: tens of dB, not equal."""
    student = students["tiny"]
    job = job_of(student, tmp_path)
    truth, plain = DiffusersEager("float32"), OnnxruntimePlain(int8=False)
    plain.prepare(job, job.open_student())
    wanted = [Wanted("a red circle", 3)]

    def judged(peer: Any) -> PictureQuality:
        drawn = [Drawing(peer, job).draw(one.prompt, one.seed) for one in wanted]
        return assess(wanted, reference, drawn, "peer")[0]

    reference = [Drawing(truth, job).draw(one.prompt, one.seed) for one in wanted]
    exact = judged(plain)
    weights = tmp_path / "transformer.onnx.data"
    before = weights.stat().st_size
    for name in QUANTIZED:
        quantize_dynamically(tmp_path / f"{name}.onnx")
    small = judged(plain)
    assert exact.latent_db is not None
    assert small.latent_db is not None
    assert exact.latent_db > 90
    assert 10 < small.latent_db < 60
    assert weights.stat().st_size < before / 2
    assert not list(tmp_path.glob("int8_*"))


def test_peers_that_cannot_be_here() -> None:
    assert absent(DiffusersEager("float32"), keep_t5=True) == ""
    assert absent(OnnxruntimePlain(int8=False), keep_t5=True) == NO_T5
    assert "no_such_package is not installed" in absent(
        replace(OnnxruntimePlain(int8=True), packages=("no_such_package",)), False
    )
    assert all(peer.packages[0] == "torch" for peer in PEERS.values())


def test_jobs_are_checked() -> None:
    with pytest.raises(InputError, match="The job cannot be read"):
        read_job('{"student": "s"}')


def results(slow: float) -> Results:
    """Diffusers, and a bundle that takes ``slow`` of its time at half of its memory."""

    def entry(name: str, target: str, factor: float, memory: int, psnr_db: float) -> Entry:
        wall = tuple(factor * (100 + i / 10) for i in range(5))
        series = Series(wall_ms=wall, cpu_ms=tuple(2 * ms for ms in wall))
        picture = PictureResult(first=series, warm=series, peak_memory_bytes=memory, peak_resident_bytes=memory)
        about = {"cpu": "C", "cpus": "2", "threads": "1", "device": "C"}
        pictures = (PictureQuality(prompt="p", seed=0, psnr_db=psnr_db, ssim=0.9, latent_db=psnr_db),)
        return Entry(
            bundle=name,
            fingerprint="f",
            target=target,
            bytes_on_disk=5_000_000,
            graph_bytes={},
            measured=Measured(runtime="r", graphs={}, picture=picture, memory_method="m", metadata=about),
            quality=Quality(reference="r", pictures=pictures),
        )

    entries = (entry("b", "openvino", slow, 1_000_000, 40.0), entry("s", "torch", 1.0, 2_000_000, 999.0))
    gone = msgspec.structs.replace(entries[1], target="plain-openvino-nncf", measured=None, absent="nncf is not installed")
    return Results(format="flash-deploy benchmark", version=2, measured_at="then", commit="c", rounds=5, entries=(*entries, gone))


def test_table_says_ratios_to_diffusers() -> None:
    lines = table(results(0.5)).splitlines()
    assert lines[2].startswith("| bundle b, openvino | 0.50 | 0.50 (0.50 to 0.50) | 0.50 | 1.0 MB | 1.0 MB | 5.0 MB | 40.0 dB |")
    assert lines[3].startswith("| diffusers, torch fp32 | 1.00 | 1.00 | 1.00 | 2.0 MB |")
    assert "Not measured: s on plain-openvino-nncf: nncf is not installed." in lines
    lone = msgspec.structs.replace(results(0.5), entries=results(0.5).entries[:1])
    with pytest.raises(InputError, match=r"was not measured \(expected torch\)"):
        table(lone)


def test_table_goes_into_its_place() -> None:
    page = f"# A\n\n{BEGIN}\nold\n{END}\n\nB\n"
    assert into(page, "new") == f"# A\n\n{BEGIN}\n\nnew\n\n{END}\n\nB\n"
    assert into(into(page, "new"), "new") == into(page, "new")
    with pytest.raises(InputError, match="has no place"):
        into("# A\n", "new")
