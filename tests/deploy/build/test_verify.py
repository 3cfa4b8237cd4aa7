from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deploy.bench.request import BenchRequest
from deploy.build import BuildRequest, build
from deploy.build.verify import verify
from deploy.bundle.folder import Bundle
from deploy.bundle.inspect import inspect_bundle, render
from deploy.errors import InputError
from exporters.choices import PROMPTS
from exporters.reference.diffusers import reference_pipeline
from exporters.student.student import BUILTIN_STUDENT, Student
from exporters.student.weights.lora.source import Lora


def test_a_lora_beside_the_student_is_refused_unless_told(builtin_bundle: Bundle, tiny_folder: Path) -> None:
    save_file({"x.lora_A.weight": np.ones((2, 2), np.float32)}, tiny_folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match="is a LoRA, which would be left out"):
        verify(builtin_bundle.folder, tiny_folder)
    (complaint,) = verify(builtin_bundle.folder, tiny_folder, ignore_lora=True).complaints
    assert complaint.what == "the bundle was made of another student"


def test_the_student_is_read_once_for_all_pictures(builtin_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with_t5: list[bool] = []

    def counted(student: Student, keep_t5: bool) -> Any:
        with_t5.append(keep_t5)
        return reference_pipeline(student, keep_t5)

    monkeypatch.setattr("exporters.reference.diffusers.reference_pipeline", counted)
    report = verify(builtin_bundle.folder, BUILTIN_STUDENT)
    assert list(report.graph_db) == [graph.name for graph in builtin_bundle.manifest.graphs]
    assert with_t5 == [builtin_bundle.manifest.text.t5 == "kept"]
    assert list(report.picture_db) == list(PROMPTS)
    assert min(report.picture_db.values()) > 100  # fp32 on both sides
    assert report.complaints == []


def test_the_vaes_encoder_is_measured_too(upon_bundle: Bundle) -> None:
    report = verify(upon_bundle.folder, BUILTIN_STUDENT, pictures=False)
    assert [*report.graph_db][-1] == "vae_encoder"
    assert list(report.graph_db) == [graph.name for graph in upon_bundle.manifest.graphs]
    assert min(report.graph_db.values()) >= 100
    assert report.complaints == []


def test_bench_opens_the_student_as_the_bundle_was_made_of_it(tiny_folder: Path) -> None:
    lora = Lora(tiny_folder / "x.safetensors", 0.5)
    request = BenchRequest((tiny_folder,), student=tiny_folder, variant="fp16", ignore_lora=True, lora=(lora,))
    kept, dropped = request.source(keep_t5=True), request.source(keep_t5=False)
    assert kept is not None
    assert dropped is not None
    assert (kept.without, dropped.without) == ((), ("text_encoder_3",))
    assert (kept.variant, kept.ignore_lora, kept.lora) == ("fp16", True, (lora,))
    with pytest.raises(InputError, match="--lora: pictures are judged beside the student's"):
        BenchRequest((tiny_folder,), lora=(lora,))
    assert BenchRequest((tiny_folder,)).source(keep_t5=True) is None


def test_gpu_bundle_of_a_vae_that_outgrows_fp16(tiny_folder: Path, tmp_path: Path) -> None:
    """onnxruntime's CPU computes fp16 convolutions in fp32, and would find nothing: the build does, and so does verify.

    A bundle of version 1, which says nothing of fp32 operators, is found to overflow, and where.
    """
    file = tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    large = {name: array * 2e4 for name, array in weights.items() if re.search(r"decoder\.(conv_in|.*conv2)\.weight", name)}
    save_file({**weights, **large}, file)
    request = BuildRequest(
        output=tmp_path / "b",
        student=tiny_folder,
        tier="desktop-gpu-24gb",
        keep_t5=False,
        height=32,
        width=48,
        max_sequence_length=7,
    )
    bundle = build(request)
    assert bundle.manifest.graph("vae_decoder").fp32_operators
    assert re.search(r"computed in fp32, .*: \d+ of vae_decoder", render(inspect_bundle(bundle.folder)))
    report = verify(bundle.folder, tiny_folder)
    assert report.complaints == []
    assert min(report.graph_db.values()) >= 50
    older = json.loads((bundle.folder / "manifest.json").read_text())
    for graph in older["graphs"]:
        graph["fp32_operators"] = []
    (bundle.folder / "manifest.json").write_text(json.dumps(older))
    (complaint,) = verify(bundle.folder, tiny_folder, pictures=False).complaints
    message = r"vae_decoder: decoder\.up_blocks\.0\.upsamplers\.0\.conv: outgrows fp16 \(expected values of at most 65504\)"
    assert re.fullmatch(message, str(complaint))
    older["version"] = 1
    (bundle.folder / "manifest.json").write_text(json.dumps(older))
    (complaint,) = verify(bundle.folder, tiny_folder, pictures=False).complaints
    assert "it may draw NaN; build it again" in str(complaint)
