from __future__ import annotations

import errno
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import deploy.build.budget
import deploy.build.measure
import deploy.build.parity
import deploy.build.plan
import deploy.build.run
from deploy.build import BuildRequest, build
from deploy.build.onnx_format import OnnxFormat
from deploy.build.plan import plan
from deploy.bundle.folder import Bundle, check_files, open_bundle
from deploy.bundle.seal import locked, partial_folder
from deploy.errors import CheckFailed, InputError, TierError
from deploy.forecast.predict import costs
from deploy.runtime.pipeline import Pipeline
from deploy.tiers.tier import all_tiers, find_tier
from exporters.reference.decibels import psnr_db
from exporters.student.student import Student
from tests.helpers.builds import left_behind, small
from tests.helpers.hub import hub_cache
from tests.helpers.kept_bundle import V1
from tests.helpers.student_files import edit_json


def test_a_plan_takes_over_what_the_student_has_to_say(students: dict[str, Student], tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "student.json").unlink()
    save_file({"x.lora_A.weight": np.ones((2, 2), np.float32)}, tiny_folder / "pytorch_lora_weights.safetensors")
    request = small(students, tmp_path / "b", student=tiny_folder)
    with pytest.raises(InputError, match=r"is a LoRA, which would be left out[\s\S]*--ignore-lora"):
        plan(request)
    left_out, guidance, *_ = plan(replace(request, ignore_lora=True)).notes
    assert left_out.startswith("LoRA left out: pytorch_lora_weights.safetensors")
    assert guidance.startswith("guidance is off")


def test_a_tier_that_keeps_t5_keeps_what_there_is(students: dict[str, Student], tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "text_encoder_3" / "model.safetensors").unlink()
    request = small(students, tmp_path / "b", student=tiny_folder, tier="desktop-gpu-24gb")
    planned = plan(request)
    assert not planned.options.keep_t5
    assert "its weights are not there" in planned.notes[0]
    with pytest.raises(InputError, match="text_encoder_3: cannot be kept"):
        plan(replace(request, keep_t5=True))


def test_existing_bundle_needs_force(students: dict[str, Student], tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    build(small(students, output))
    with pytest.raises(InputError, match=r"is there already[\s\S]*--force"):
        build(small(students, output))
    assert len(build(small(students, output, force=True, steps=2)).manifest.sampling.timesteps) == 2
    assert left_behind(tmp_path) == ["bundle"]


def test_a_folder_that_is_not_a_bundle_is_never_replaced(students: dict[str, Student], tmp_path: Path) -> None:
    output = tmp_path / "photos"
    output.mkdir()
    (output / "wedding.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="is not a bundle and is not replaced"):
        build(small(students, output, force=True))
    assert left_behind(output) == ["wedding.jpg"]


def test_only_bundles_are_replaced_and_nothing_with_them(students: dict[str, Student], tmp_path: Path) -> None:
    """Browser extensions and web apps have a manifest.json too; and pictures are easily drawn into a bundle's folder."""
    output = tmp_path / "extension"
    output.mkdir()
    (output / "manifest.json").write_text('{"name": "my extension", "version": "1.0"}')
    (output / "background.js").write_text("months of work")
    with pytest.raises(InputError, match="is not a bundle and is not replaced"):
        build(small(students, output, force=True))
    assert left_behind(output) == ["background.js", "manifest.json"]
    bundle = open_bundle(shutil.copytree(V1, tmp_path / "bundle"))
    (bundle.folder / ".DS_Store").touch()
    (bundle.folder / "image.png").touch()
    with pytest.raises(InputError, match=r"holds more than a bundle[\s\S]*image.png: not a file of this bundle"):
        plan(small(students, bundle.folder, force=True))
    (bundle.folder / "image.png").unlink()
    plan(small(students, bundle.folder, force=True))
    (bundle.folder / "manifest.json").write_text('{"format": "flash-deploy bundle", "version": 1}')
    plan(small(students, bundle.folder, force=True))  # `build the bundle again` is what its complaint says


def test_links_in_a_partial_folder_lead_nowhere(students: dict[str, Student], tmp_path: Path) -> None:
    """In a folder that others write to, they may have put them there."""
    home, place = tmp_path / "home", tmp_path / "shared"
    for folder in (home, place):
        folder.mkdir()
    (home / "tokenizer.json").write_text("precious")
    partial = partial_folder(place / "bundle")
    partial.symlink_to(home)
    with pytest.raises(InputError, match=r"\.bundle\.partial: is a link"):
        build(small(students, place / "bundle"))
    partial.unlink()
    partial.mkdir()
    (partial / "tokenizer").symlink_to(home)
    (partial / "denoiser.onnx.data").symlink_to(home / "tokenizer.json")
    bundle = build(small(students, place / "bundle"))
    assert check_files(bundle) == []
    assert left_behind(place) == ["bundle"]
    assert (home / "tokenizer.json").read_text() == "precious"
    assert left_behind(home) == ["tokenizer.json"]


def test_a_student_that_changes_meanwhile_is_not_sealed(
    tiny_folder: Path, students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = deploy.build.run._Build._write

    def changing(*arguments: Any) -> Any:
        edit_json(tiny_folder / "vae" / "config.json", scaling_factor=0.5)
        return write(*arguments)

    monkeypatch.setattr(deploy.build.run._Build, "_write", changing)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"is being written to[\s\S]*vae/config.json: has changed since the student was opened"):
        build(small(students, tmp_path / "out" / "bundle", student=tiny_folder))
    assert left_behind(tmp_path / "out") == []


def test_a_lock_of_what_has_been_sealed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before another build renamed its folder, locked after it: the file is in the bundle by then."""
    import fcntl

    partial = tmp_path / ".bundle.partial"
    partial.mkdir()
    monkeypatch.setattr(fcntl, "flock", lambda *_: partial.rename(tmp_path / "bundle"))
    with pytest.raises(InputError, match="Another process is building"), locked(partial):
        pass


def test_names_of_students_hold_no_control_characters(tiny_folder: Path, students: dict[str, Student], tmp_path: Path) -> None:
    odd = tiny_folder.rename(tmp_path / "stu\x1bdent")
    assert build(small(students, tmp_path / "bundle", student=odd)).manifest.student.name == "stu\\x1bdent"
    with pytest.raises(InputError, match=r"not valid UTF-8") as caught:
        build(small(students, tmp_path / "other", student=odd.rename(tmp_path / "stu\udcffdent")))
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


def test_licences_that_no_bundle_can_hold(tiny_folder: Path, students: dict[str, Student], tmp_path: Path) -> None:
    (tiny_folder / "LICENSE:x").write_text("free")
    with pytest.raises(InputError, match="has a name that not every system can hold"):
        plan(small(students, tmp_path / "bundle", student=tiny_folder))


BAD_REQUESTS = {
    "unknown tier": ({"tier": "toaster"}, r"no such tier \(expected phone or .*, got toaster\)"),
    "odd size": (
        {"height": 40},
        r"height: does not fit the student \(expected a multiple of 16, at most 192, got 40\)",
    ),
    "too large": ({"width": 208}, r"width: .* at most 192, got 208"),
    "no T5": (
        {"keep_t5": True, "student": "no qk_norm, no dual"},
        r"text_encoder_3: cannot be kept: the student has none",
    ),
    "sigmas and steps": ({"steps": 3, "sigmas": (1.0, 0.5)}, r"sigmas: not one for each step \(expected 3, got 2\)"),
    "no size": ({"height": 0}, r"height: wrong \(expected a whole number from 1 to 1048576, got 0\)"),
    "endless": ({"steps": 10**9}, r"steps: wrong \(expected a whole number from 1 to 1000, got 1000000000\)"),
    "no layout": ({"layout": "odd"}, r"layout: unknown \(expected native or optimum or swift, got 'odd'\)"),
    "no student": ({"student": Path("/nowhere/student")}, r"/nowhere/student does not exist"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_requests_leave_nothing(changes: dict, message: str, students: dict[str, Student], tmp_path: Path) -> None:
    if isinstance(changes.get("student"), str):
        changes = changes | {"student": students[changes["student"]].path}
    with pytest.raises(InputError, match=message):
        build(small(students, tmp_path / "bundle", **changes))
    assert left_behind(tmp_path) == []


def test_an_unexpected_error_leaves_nothing(
    students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(OnnxFormat, "draft", broken)
    with pytest.raises(ZeroDivisionError):
        build(small(students, tmp_path / "new" / "folders" / "bundle"))
    assert left_behind(tmp_path) == []


def test_a_disk_that_fills_up(students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "denoiser.onnx.data")

    monkeypatch.setattr(deploy.build.run._Build, "_write", full)
    with pytest.raises(InputError, match=r"denoiser.onnx.data: No space left on device[\s\S]*free some space"):
        build(small(students, tmp_path / "bundle"))
    assert left_behind(tmp_path) == []


def test_what_came_to_the_place_meanwhile_stays(
    students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parity = deploy.build.measure.with_parity

    def meanwhile(*arguments):
        (tmp_path / "bundle").mkdir(exist_ok=True)
        return with_parity(*arguments)

    monkeypatch.setattr(deploy.build.run, "with_parity", meanwhile)
    with pytest.raises(InputError, match="has come to be while the bundle was built"):
        build(small(students, tmp_path / "bundle"))
    assert left_behind(tmp_path) == ["bundle"]


def test_dropped_t5_is_not_needed(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(tiny_folder / "text_encoder_3")
    request = BuildRequest(output=tmp_path / "b", student=tiny_folder, height=32, width=32, parity="never", keep_t5=False)
    assert [component for graph in plan(request).graphs for component in graph.components].count("text_encoder_3") == 0
    with pytest.raises(InputError, match="text_encoder_3"):
        build(replace(request, output=tmp_path / "c", keep_t5=True))


def test_a_schedule_that_depends_on_the_size_is_not_pinned_for_all(tiny_folder: Path, tmp_path: Path) -> None:
    edit_json(tiny_folder / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    with pytest.raises(InputError, match="--dynamic: the student's schedule depends on the picture's size"):
        build(BuildRequest(output=tmp_path / "b", student=tiny_folder, dynamic=True))


def test_the_tiers_steps_are_the_fallback(students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = msgspec.structs.replace(find_tier("desktop-cpu"), steps=3)
    monkeypatch.setattr(deploy.build.plan, "find_tier", lambda _: tier)
    assert len(plan(small(students, tmp_path / "b")).sampling.timesteps) == 3


BUDGETS = {
    "download": ({"download_bytes": 1000}, r"download: over the tier's budget .*at most 0.00 GB.*no uniform profile"),
    "memory": (
        {"memory_bytes": 90_000_000},
        r"memory \(\w+, the largest graph\): over.*smaller weights.*tiers with as much: phone, tablet",
    ),
}


@pytest.mark.parametrize(("budget", "message"), BUDGETS.values(), ids=BUDGETS)
def test_budgets_are_kept(
    budget: dict, message: str, students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = msgspec.structs.replace(find_tier("desktop-cpu"), **budget)
    monkeypatch.setattr(deploy.build.plan, "find_tier", lambda _: tier)
    monkeypatch.setattr(deploy.build.budget, "RUNTIME_BYTES", 90_000_000)  # more than all of it
    with pytest.raises(TierError, match=message.replace(".*", r"[\s\S]*")):
        build(small(students, tmp_path / "b"))
    assert left_behind(tmp_path) == []


def test_a_scheme_that_the_tier_cannot_run(students: dict[str, Student], tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[[rule]]\ncomponent = "*"\nweights = "*"\nscheme = "lut4"\n')
    with pytest.raises(TierError, match=r"rule 1: the tier cannot run its scheme \(expected fp32 or .*, got lut4\)"):
        build(small(students, tmp_path / "b", profile=tmp_path / "p.toml"))


def test_a_rule_for_what_is_dropped_is_no_typo(students: dict[str, Student], tmp_path: Path) -> None:
    rule = '[[rule]]\ncomponent = "{}"\nweights = "*"\nscheme = "int8"\n'
    (tmp_path / "p.toml").write_text(rule.format("*") + rule.format("text_encoder_3"))
    assert not plan(small(students, tmp_path / "b", profile=tmp_path / "p.toml")).options.keep_t5


@pytest.mark.parametrize("tier", all_tiers())
def test_every_tier_has_a_profile_that_it_can_run(tier: str, tmp_path: Path) -> None:
    planned = plan(BuildRequest(output=tmp_path / "b", tier=tier))
    assert {rule.scheme.name for rule in planned.profile.rules} <= set(planned.tier.schemes)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinite"), (1e6, "too large for fp16")])
def test_bad_weights_leave_nothing(
    value: float, message: str, tiny_folder: Path, students: dict[str, Student], tmp_path: Path
) -> None:
    file = tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["proj_out.weight"][3, 4] = value
    save_file(tensors, file)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(InputError, match=rf"transformer: proj_out.weight .*{message}"):
        build(small(students, folder / "bundle", student=tiny_folder, precision="fp16"))
    assert left_behind(folder) == []


def test_too_little_disk_is_found_before_writing(
    students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(InputError, match=r"too little disk \(expected .* MB, got 0.00 MB free\)"):
        build(small(students, tmp_path / "bundle"))
    assert left_behind(tmp_path) == []


def test_two_builds_of_one_bundle(students: dict[str, Student], tmp_path: Path) -> None:
    partial = partial_folder(tmp_path / "bundle")
    partial.mkdir()
    with locked(partial), pytest.raises(InputError, match="Another process is building"):
        build(small(students, tmp_path / "bundle"))


def test_a_wrong_graph_is_not_sealed(students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exporters.restructure import denoiser

    monkeypatch.setattr(denoiser, "EPS", 1e-2)  # a slip in the export
    with pytest.raises(CheckFailed, match=r"denoiser does not compute what diffusers computes: .* dB, required 100"):
        build(small(students, tmp_path / "bundle", parity="always", precision="fp32"))
    assert left_behind(tmp_path) == []


def test_large_graphs_are_not_measured_unless_asked(
    students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.build.parity, "LIMIT_BYTES", 500_000)
    bundle = build(small(students, tmp_path / "bundle", parity="auto"))
    notes = {graph.name: graph.parity_note for graph in bundle.manifest.graphs if graph.parity_db is None}
    assert "denoiser" in notes
    assert "verify --student" in notes["denoiser"]


def test_fp16_is_half_the_bytes(builtin_bundle: Bundle, tmp_path: Path) -> None:
    bundle = build(BuildRequest(output=tmp_path / "half", precision="fp16", parity="never"))
    for full, half in zip(builtin_bundle.manifest.graphs, bundle.manifest.graphs, strict=True):
        assert 0.49 < half.weight_bytes / full.weight_bytes < 0.56
    latents = np.random.default_rng(1).standard_normal((1, 16, 8, 8), np.float32)
    pictures = [
        Pipeline(b).generate("a small cyan circle on a gray background", latents=latents) for b in (builtin_bundle, bundle)
    ]
    # The built-in student's weights are fp16: storing them as fp16 loses nothing.
    assert np.abs(pictures[0] - pictures[1]).max() < 1e-4


PROFILE = """
[[rule]]
component = "*"
weights = "*"
scheme = "int8"

[[rule]]
component = "transformer"
weights = "*.attn*.weight"
scheme = "int8g32"
reason = "blocks"

[[rule]]
component = "transformer"
weights = "*.ff*.weight"
scheme = "w8a8"

[[rule]]
component = "vae"
weights = "*"
scheme = "fp16"
"""


def test_profile_chooses_how_each_weight_is_stored(builtin_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(PROFILE)
    bundle = build(BuildRequest(output=tmp_path / "b", profile=tmp_path / "profile.toml"))
    manifest = bundle.manifest
    assert manifest.precision == "mixed"
    assert [(rule.scheme, rule.reason) for rule in manifest.profile] == [
        ("int8", ""),
        ("int8g32", "blocks"),
        ("w8a8", ""),
        ("fp16", ""),
    ]
    assert not manifest.kept
    full, small = (b.manifest.graph("denoiser") for b in (builtin_bundle, bundle))
    assert small.parameters == full.parameters
    assert small.weight_bytes < 0.35 * full.weight_bytes
    latents = np.random.default_rng(1).standard_normal((1, 16, 8, 8), np.float32)
    pictures = [
        Pipeline(b).generate("a red circle left of a blue square on a white background", latents=latents)
        for b in (builtin_bundle, bundle)
    ]
    # 8 bits of weights and activations: 40 dB each after four steps (measured 40 to 50); other pictures are below 15.
    assert psnr_db(*pictures) >= 30


BAD_PROFILES = {
    "typo in a component": (PROFILE.replace('"vae"', '"vea"'), {}, r'rule 4: matches no weight \(got component "vea"'),
    "nothing for some": ('[[rule]]\ncomponent = "vae"\nweights = "*"\nscheme = "int8"', {}, r"no rule speaks of this weight"),
    "two ways at once": (PROFILE, {"precision": "fp16"}, r"--precision and --profile cannot both be given"),
}


@pytest.mark.parametrize(("text", "changes", "message"), BAD_PROFILES.values(), ids=BAD_PROFILES)
def test_bad_profiles_leave_nothing(text: str, changes: dict, message: str, students: dict[str, Student], tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        build(small(students, tmp_path / "b", profile=tmp_path / "profile.toml", **changes))
    assert left_behind(tmp_path) == ["profile.toml"]


def test_dynamic_bundles_know_their_largest_size(students: dict[str, Student], tmp_path: Path) -> None:
    pipeline = Pipeline(build(small(students, tmp_path / "b", dynamic=True)))
    assert pipeline.generate("x", height=192, width=16).shape == (1, 192, 16, 3)
    with pytest.raises(
        InputError, match=r"--height: wrong size \(expected a multiple of 16 from 16 to 192, for example 192, got 208\)"
    ):
        pipeline.generate("x", height=208, width=16)


@pytest.mark.skipif(find_spec("coremltools") is None, reason="coremltools is not installed (flash-deploy[coreml])")
def test_core_ml_bundles_draw_the_same_picture(tmp_path: Path, upon_bundle: Bundle) -> None:
    """fp16 programs in the evaluator against the fp32 ONNX bundle: 60 dB PSNR seen; the fp16 contract asks for 40."""
    options: dict[str, Any] = {"precision": "fp16", "stages": 2, "parity": "never", "vae_encoder": True}
    bundle = build(BuildRequest(output=tmp_path / "b", tier="phone", format="coreml", **options))
    assert [len(graph.stages) for graph in bundle.manifest.graphs] == [1, 1, 2, 1, 1]
    assert bundle.manifest.graph("vae_decoder").fp32_operators  # the built-in student's VAE outgrows fp16
    assert (bundle.manifest.compute_units, bundle.manifest.attention) == ("cpu-and-ne", "split-einsum")
    listed = {bundle.folder / record.path for record in bundle.manifest.files}
    assert {path for path in bundle.folder.rglob("*") if path.is_file()} - listed == {bundle.folder / "manifest.json"}
    latents = np.random.default_rng(5).standard_normal((1, 16, 8, 8), np.float32)
    prompt = "a red circle left of a blue square on a white background"
    pipeline = Pipeline(bundle)
    assert pipeline.runtime == "evaluator" or sys.platform == "darwin"
    expected = Pipeline(upon_bundle).generate(prompt, latents=latents)
    assert psnr_db(expected, pipeline.generate(prompt, latents=latents)) >= 40
    upon, mask = expected[0], np.tri(64, dtype=np.float32)
    changed = [one.generate("a green star", image=upon, mask=mask, strength=0.7) for one in (Pipeline(upon_bundle), pipeline)]
    assert psnr_db(*changed) >= 40
    assert psnr_db(changed[0], expected) < 30
    with pytest.raises(InputError, match=r"--runtime.*coreml or evaluator.*onnxruntime"):
        Pipeline(bundle, runtime="onnxruntime")
    published = Pipeline(hub_cache(bundle.folder, tmp_path / "hub"))  # packages whose files are links to blobs
    pooled = {"pooled_projections": np.ones((1, 160), np.float32)}
    assert np.array_equal(published.run("conditioner", pooled)[0], pipeline.run("conditioner", pooled)[0])
    assert costs(published.bundle) == costs(bundle)


COREML_REQUESTS = {
    "tier without the format": ({"tier": "desktop-cpu"}, r"--format.*onnx.*coreml.*\n.*phone"),
    "dynamic": ({"dynamic": True}, "--dynamic: Core ML bundles have a fixed size"),
    "layout": ({"layout": "optimum"}, "--layout: is a layout of ONNX bundles"),
    "stages": ({"stages": 10_000}, "--stages: too many"),
    "unknown units": ({"compute_units": "tpu"}, "compute_units: unknown"),
    "attention of ONNX": ({"format": "onnx", "attention": "fused"}, "--attention: is an option of --format coreml"),
    "opset of Core ML": ({"opset": 21}, "--opset: is an option of --format onnx"),
    "unknown opset": ({"format": "onnx", "opset": 22}, r"opset: unknown \(expected None or 21 or 23, got 22\)"),
    "unknown attention": ({"attention": "flash"}, "attention: unknown"),
    "stages of ONNX": ({"format": "onnx", "stages": 2}, "--stages: is an option of --format coreml"),
}


@pytest.mark.parametrize(("changes", "message"), COREML_REQUESTS.values(), ids=COREML_REQUESTS)
def test_core_ml_requests_that_cannot_be_fulfilled(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        build(BuildRequest(**{"output": tmp_path / "b", "tier": "phone", "format": "coreml", **changes}))
    assert list(tmp_path.iterdir()) == []


def test_schemes_of_the_neural_engine(tmp_path: Path) -> None:
    """Blocks are computed wrongly there; the GPU takes them."""
    profile = tmp_path / "p.toml"
    profile.write_text('[[rule]]\ncomponent = "*"\nweights = "*"\nscheme = "int8g32"\n')
    request = BuildRequest(output=tmp_path / "b", tier="phone", format="coreml", profile=profile)
    with pytest.raises(InputError, match="int8g32"):
        plan(request)
    planned = plan(replace(request, compute_units="cpu-and-gpu"))
    assert (planned.compute_units, planned.attention) == ("cpu-and-gpu", "fused")
