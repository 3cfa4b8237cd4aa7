"""A bundle of a student with a LoRA: what is in its graphs, what it says of itself, and who takes it for another's."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from deploy.build import build
from deploy.build.plan import plan
from deploy.build.resume import resume_key
from deploy.build.verify import verify
from deploy.bundle.folder import Bundle, open_bundle
from deploy.bundle.inspect import inspect_bundle, inspect_path, render
from deploy.bundle.manifest import LoraRecord
from deploy.card.text import page
from exporters.reference.decibels import snr_db
from exporters.reference.diffusers import reference_pipeline
from exporters.student.open import open_student
from exporters.student.student import Student
from exporters.student.weights.lora.source import Lora
from tests.helpers import lora_files as files
from tests.helpers.builds import small


@pytest.fixture(scope="module")
def lora(students: dict[str, Student], tmp_path_factory: pytest.TempPathFactory) -> Lora:
    made = files.products(students["tiny"], "transformer", "text_encoder", "text_encoder_2")
    return Lora(files.write(tmp_path_factory.mktemp("lora") / "hyper.safetensors", files.diffusers(made)), 0.5)


@pytest.fixture(scope="module")
def bundle(students: dict[str, Student], lora: Lora, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("bundles") / "merged"
    return build(small(students, output, lora=(lora,), precision="fp32", keep_t5=False, parity="always"))


def test_its_graphs_draw_what_diffusers_draws_with_the_lora_fused(
    bundle: Bundle, lora: Lora, students: dict[str, Student], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is not this package's own sum, but what diffusers makes of the plain student and the file."""
    assert all(graph.parity_db is not None and graph.parity_db >= 100 for graph in bundle.manifest.graphs)

    def fused(student: Student, keep_t5: bool) -> object:
        pipeline = reference_pipeline(students["tiny"], keep_t5)
        pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name)
        pipeline.fuse_lora(lora_scale=lora.scale)
        return pipeline

    monkeypatch.setattr("exporters.reference.diffusers.reference_pipeline", fused)
    report = verify(bundle.folder, students["tiny"].path, lora=[lora])
    assert report.complaints == []
    assert min(report.picture_db.values()) > 90  # fp32 on both sides, and a few steps


def test_the_manifest_names_it(bundle: Bundle, lora: Lora, students: dict[str, Student]) -> None:
    digest = sha256(lora.path.read_bytes()).hexdigest()
    assert bundle.manifest.student.loras == (LoraRecord(name="hyper.safetensors", sha256=digest, scale=0.5),)
    merged = open_student(students["tiny"].path, without=("text_encoder_3",), lora=[lora])
    assert bundle.manifest.student.fingerprint == merged.fingerprint()
    assert any(
        note.startswith("LoRA merged: hyper.safetensors, scale 0.5, layers: 11 of transf") for note in bundle.manifest.notes
    )
    line = f"LoRA merged: hyper.safetensors, scale 0.5, sha256:{digest}"
    assert line in render(inspect_bundle(bundle.folder)).splitlines()
    assert line in render(inspect_path(students["tiny"].path, lora=[lora])).splitlines()
    assert "| LoRA merged | hyper.safetensors at scale 0.5 |" in page(bundle)


def test_a_manifest_without_the_key_is_one_without_a_lora(bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "old"))
    content = json.loads((folder / "manifest.json").read_text())
    del content["student"]["loras"]
    (folder / "manifest.json").write_text(json.dumps(content))
    assert open_bundle(folder).manifest.student.loras == ()
    assert "LoRA merged: hyper.safetensors, scale 0.5, sha256" not in render(inspect_bundle(folder))


@pytest.mark.parametrize("loras", [(), (1.0,), (0.5, 0.5)], ids=["none", "another scale", "twice"])
def test_verify_takes_no_other(loras: tuple[float, ...], bundle: Bundle, lora: Lora, students: dict[str, Student]) -> None:
    given = [Lora(lora.path, scale) for scale in loras]
    (complaint,) = verify(bundle.folder, students["tiny"].path, lora=given).complaints
    assert complaint.what == "the bundle was made of another student"


def test_a_finished_graph_is_of_its_lora(lora: Lora, students: dict[str, Student], tmp_path: Path) -> None:
    keys = set()
    for loras in ((), (lora,), (Lora(lora.path, 1.0),)):
        planned = plan(small(students, tmp_path / "b", lora=loras))
        keys.add(resume_key(planned, planned.graphs[0], planned.student.fingerprint()))
    assert len(keys) == 3


def test_fp16_is_rounded_from_the_sum(students: dict[str, Student], tmp_path: Path) -> None:
    """A bf16 student: a number of 11 bits is right to 2^-12 of itself or better, 72 dB; one of 8 bits to 2^-9, 54 dB."""
    plain, module = students["all dual, bf16"], "transformer_blocks.0.attn.to_q"
    its = files.halves(plain, "transformer", module, 4, np.random.default_rng(0))
    file = files.write(tmp_path / "x.safetensors", files.diffusers({("transformer", module): its}))
    request = small(students, tmp_path / "b", student=plain.path, lora=(Lora(file),), precision="fp16", keep_t5=False)
    made = build(request)
    wanted = files.expected(plain, {("transformer", module): its})["transformer", f"{module}.weight"]
    import onnx_ir

    model = onnx_ir.load(made.folder / "denoiser.onnx")
    arrays = [value.const_value.numpy() for value in model.graph.initializers.values()]
    candidates = [a.astype(np.float64) for a in arrays if a.ndim == 2 and a.shape == wanted.shape]
    assert max(max(snr_db(wanted, a), snr_db(wanted, a.T)) for a in candidates) > 70
