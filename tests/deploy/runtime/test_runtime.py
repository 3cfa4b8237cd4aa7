from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploy.build import BuildRequest, build
from deploy.build.verify import sampling_of
from deploy.bundle.folder import Bundle
from deploy.bundle.inspect import inspect_bundle, render
from deploy.errors import BundleError, InputError
from deploy.runtime.pipeline import Pipeline
from deploy.runtime.sampler import euler, renoise, sample
from exporters.choices import Runtime
from exporters.reference.decibels import psnr_db
from exporters.reference.diffusers import reference_pipeline
from exporters.reference.pictures import reference_picture
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers.kept_bundle import V1

PROMPT = "a red circle left of a blue square on a white background"


def small_pipeline() -> Pipeline:
    """A bundle that takes no building."""
    return Pipeline(V1)


def test_same_picture_as_diffusers(builtin_bundle: Bundle) -> None:
    """Against the pipeline as a user calls it, sigmas and all: nothing of this project but the latents."""
    import torch

    latents = np.random.default_rng(5).standard_normal((1, 16, 8, 8), np.float32)
    pipeline = reference_pipeline(open_student(), keep_t5=False)
    expected = pipeline(
        PROMPT,
        height=64,
        width=64,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=1.0,
        max_sequence_length=open_student().defaults.max_sequence_length,
        latents=torch.from_numpy(latents),
        output_type="np",
    ).images
    got = Pipeline(builtin_bundle).generate(PROMPT, latents=latents)
    assert got.shape == (1, 64, 64, 3)
    assert psnr_db(expected, got) >= 50
    other = Pipeline(builtin_bundle).generate(PROMPT.replace("red", "green"), latents=latents)
    assert psnr_db(expected, other) < 30  # the comparison can fail


@pytest.mark.parametrize("method", ["euler", "renoise"])
def test_torchs_noise_is_diffusers_generators(method: str) -> None:
    """Picture i from a generator of the seed + i, with which a re-noising sampler goes on."""
    import torch
    from diffusers.utils.torch_utils import randn_tensor

    pipeline = small_pipeline()
    sampling = msgspec.structs.replace(pipeline.manifest.sampling, method=method)
    pipeline.manifest = msgspec.structs.replace(pipeline.manifest, sampling=sampling)
    picture, steps = pipeline.manifest.picture, len(sampling.timesteps)
    shape = (1, picture.latent_channels, picture.height // 8, picture.width // 8)
    seed = (1 << 32) + 5
    generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
    latents = randn_tensor((2, *shape[1:]), generators).numpy()
    noise = np.stack([[torch.randn(shape, generator=generator).numpy()[0] for _ in range(steps)] for generator in generators])
    wanted = pipeline.generate(PROMPT, latents=latents, step_noise=noise)
    got = pipeline.generate(PROMPT, seed, num_images=2, noise="torch")
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    assert np.abs(pipeline.generate(PROMPT, seed, num_images=2) - wanted).max() > 0.01


def test_seeds_that_torch_does_not_have() -> None:
    with pytest.raises(
        InputError, match=r"--seed: torch has no such seed \(expected 0 to 18446744073709551614, got 18446744073709551615\)"
    ):
        small_pipeline().generate(PROMPT, (1 << 64) - 1, num_images=2, noise="torch")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (100, "a multiple of 16 from 16 to 384, for example 96 or 112"),
        (7, "a multiple of 16 from 16 to 384, for example 16"),
        (4000, "a multiple of 16 from 16 to 384, for example 384"),
        (384 + 15, "a multiple of 16 from 16 to 384, for example 384"),
        (-16, "a multiple of 16 from 16 to 384, for example 16"),
    ],
)
def test_a_dynamic_bundle_says_which_sizes_are_near(size: int, expected: str) -> None:
    pipeline = small_pipeline()
    picture = msgspec.structs.replace(pipeline.manifest.picture, dynamic=True, multiple_of=16, largest=384)
    pipeline.manifest = msgspec.structs.replace(pipeline.manifest, picture=picture)
    with pytest.raises(InputError) as error:
        pipeline.generate(PROMPT, height=size)
    assert f"--height: wrong size (expected {expected}, got {size})" in str(error.value)
    assert "--dynamic" not in str(error.value)


def test_a_fixed_bundle_says_what_to_leave_out() -> None:
    pipeline = small_pipeline()
    with pytest.raises(InputError, match="leave --width out, or build a bundle of that size, or with --dynamic"):
        pipeline.generate(PROMPT, width=4096)
    pipeline.manifest = msgspec.structs.replace(pipeline.manifest, model_format="coreml")
    with pytest.raises(InputError, match=r"leave --width out, or build a bundle of that size$"):
        pipeline.generate(PROMPT, width=4096)


def test_picture_shows_what_the_prompt_says(builtin_bundle: Bundle) -> None:
    picture = Pipeline(builtin_bundle).generate(PROMPT, seed=0)[0]
    left, right = (picture[20:44, columns].reshape(-1, 3).mean(axis=0) for columns in (slice(8, 24), slice(40, 56)))
    assert left.argmax() == 0  # red on the left
    assert right.argmax() == 2  # blue on the right
    assert (picture[:4].mean(axis=(0, 1)) > 0.9).all()  # white above


@pytest.mark.parametrize(
    ("layout", "sampler", "opset"),
    [("native", "euler", None), ("native", "renoise", 21), ("optimum", "renoise", 21)],
)
def test_layouts_and_samplers_match_diffusers(
    layout: str, sampler: str, opset: int | None, students: dict[str, Student], tmp_path: Path
) -> None:
    """What is not drawn here is measured graph by graph (``optimum`` at its own opset)."""
    student = students["tiny"]
    request = BuildRequest(
        output=tmp_path / "b",
        student=student.path,
        opset=opset,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        sampler=sampler,  # type: ignore[arg-type]
        precision="fp32",
        height=48,
        width=64,
        keep_t5=True,
        max_sequence_length=9,
        parity="never",
    )
    bundle = build(request)
    wanted = (21, {"onnxruntime": "1.20"}) if opset else (23, {"onnxruntime": "1.23"})
    assert (bundle.manifest.opset, bundle.manifest.requires) == wanted
    assert f"needs: opset {bundle.manifest.opset}, onnxruntime" in render(inspect_bundle(bundle.folder))
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((1, 16, 6, 8), np.float32), rng.standard_normal((1, 4, 16, 6, 8), np.float32)
    sampling = sampling_of(bundle.manifest)
    expected = reference_picture(student, PROMPT, latents, sampling, keep_t5=True, max_sequence_length=9, step_noise=noise[0])
    assert psnr_db(expected, Pipeline(bundle).generate(PROMPT, latents=latents, step_noise=noise)) >= 50
    other = "a green square"
    two = Pipeline(bundle).generate(
        [PROMPT, other], latents=np.concatenate([latents] * 2), step_noise=np.concatenate([noise] * 2)
    )
    for drawn, prompt in zip(two, (PROMPT, other), strict=True):
        assert psnr_db(Pipeline(bundle).generate(prompt, latents=latents, step_noise=noise)[0], drawn) >= 100
    assert psnr_db(two[0], two[1]) < 60  # a random student hardly listens
    if layout == "optimum":  # any size
        assert Pipeline(bundle).generate(PROMPT, height=32, width=96).shape == (1, 32, 96, 3)


def test_a_multistep_solver_draws_as_diffusers(tmp_path: Path) -> None:
    """As TDM's students are drawn: in diffusers with its own scheduler, of which nothing here is taken."""
    import torch
    from diffusers import DPMSolverMultistepScheduler

    wanted = {"variant": "teacher", "precision": "fp32", "steps": 4, "sampler": "dpmpp", "shift": 6.0, "parity": "never"}
    bundle = build(BuildRequest(output=tmp_path / "b", **wanted))  # type: ignore[arg-type]
    pipeline = reference_pipeline(open_student(variant="teacher"), keep_t5=False)
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=6.0)
    pipeline.scheduler = scheduler
    latents = np.random.default_rng(5).standard_normal((1, 16, 8, 8), np.float32)
    options = {"max_sequence_length": 24, "latents": torch.from_numpy(latents), "output_type": "np", "height": 64, "width": 64}
    expected = pipeline(PROMPT, num_inference_steps=4, guidance_scale=2.0, **options).images
    got = Pipeline(bundle).generate(PROMPT, latents=latents)
    assert psnr_db(expected, got) >= 50
    sampling = msgspec.structs.replace(bundle.manifest.sampling, method="euler")
    euler = Pipeline(dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, sampling=sampling)))
    assert psnr_db(expected, euler.generate(PROMPT, latents=latents)) < 45  # the comparison can fail


def test_pictures_of_a_seed_do_not_depend_on_their_number(builtin_bundle: Bundle) -> None:
    pipeline = Pipeline(builtin_bundle, keep_graphs=True)
    three = pipeline.generate(PROMPT, seed=3, num_images=3)
    assert np.array_equal(three[:1], pipeline.generate(PROMPT, seed=3))
    assert not np.array_equal(three[0], three[1])


def test_graphs_are_freed_after_their_stage(builtin_bundle: Bundle) -> None:
    pipeline = Pipeline(builtin_bundle)
    loaded: dict[str, weakref.ref] = {}

    def look(*_: object) -> None:
        loaded.update({name: weakref.ref(session) for name, session in pipeline._sessions._loaded.items()})
        assert sum(ref() is not None for ref in loaded.values()) <= 1  # the session itself is gone, not just its name

    pipeline.generate(PROMPT, progress=look)
    assert set(loaded) >= {"denoiser", "vae_decoder"}
    assert all(ref() is None for ref in loaded.values())
    kept = Pipeline(builtin_bundle, keep_graphs=True)
    kept.generate(PROMPT)
    assert len(kept._sessions._loaded) == 4


def test_progress_tells_every_step(builtin_bundle: Bundle) -> None:
    told: list[tuple[str, int, int]] = []
    Pipeline(builtin_bundle).generate(PROMPT, num_images=2, progress=lambda *what: told.append(what))
    assert [t for t in told if t[0] == "denoise"][-1] == ("denoise", 8, 8)
    assert told[-1] == ("decode", 2, 2)


BAD_CALLS = {
    "size": (
        {"height": 128},
        r"--height: this bundle has a fixed size \(expected 64 pixels, got 128\)[\s\S]*--dynamic",
    ),
    "latents' shape": (
        {"latents": np.zeros((1, 16, 4, 8), np.float32)},
        r"expected \[images, 16, 8, 8\], got \[1, 16, 4, 8\]",
    ),
    "no latents": ({"latents": np.zeros((0, 16, 8, 8), np.float32)}, r"got \[0, 16, 8, 8\]"),
    "NaN latents": ({"latents": np.full((1, 16, 8, 8), np.nan, np.float32)}, "NaN, infinite or not numbers"),
    "integer latents": ({"latents": np.zeros((1, 16, 8, 8), int)}, "finite floats, got int64"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(arguments: dict, message: str, builtin_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline(builtin_bundle).generate(PROMPT, **arguments)


def test_absent_provider_is_named(builtin_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"--provider: not available here \(expected cpu.*, got quantum\)"):
        Pipeline(builtin_bundle, provider="quantum")


@pytest.mark.parametrize(("compute", "cause"), [("fp32", "values\n"), ("fp16", "values: fp16 overflowed, most likely\n")])
@pytest.mark.parametrize(("graph", "where"), [("denoiser", "step 1"), ("vae_decoder", "the picture")])
def test_a_picture_that_is_not_finite_is_not_drawn(
    graph: str, where: str, compute: str, cause: str, builtin_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = msgspec.structs.replace(builtin_bundle.manifest, compute=compute)
    pipeline = Pipeline(Bundle(builtin_bundle.folder, manifest))
    run = pipeline.run
    spoilt = [np.full((1, 16, 8, 8), np.nan, np.float32)]
    monkeypatch.setattr(pipeline, "run", lambda name, inputs: spoilt if name == graph else run(name, inputs))
    with pytest.raises(BundleError, match=f"{where}: holds NaN or infinite {cause}[\\s\\S]*verify --student"):
        pipeline.generate("x")


def test_graph_that_is_not_onnx(damaged_bundle: Path) -> None:
    file = damaged_bundle / "denoiser.onnx"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(BundleError, match=r"denoiser.onnx[\s\S]*flash-deploy verify"):
        Pipeline(damaged_bundle).generate(PROMPT)


def test_swapped_graphs_are_found(damaged_bundle: Path) -> None:
    import json

    manifest = json.loads((damaged_bundle / "manifest.json").read_text())
    manifest["graphs"][2]["path"] = "vae_decoder.onnx"
    (damaged_bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="other inputs or outputs"):
        Pipeline(damaged_bundle).generate(PROMPT)


@pytest.mark.parametrize(("runtime", "message"), [("onnxruntime", "escape"), ("openvino", "outside the base directory")])
def test_external_data_out_of_the_bundle_is_not_read(
    runtime: Runtime, message: str, damaged_bundle: Path, tmp_path: Path
) -> None:
    """The runtimes themselves refuse external data outside the model's folder; this pins that they do."""
    data = damaged_bundle / "denoiser.onnx.data"
    outside = b"../secret.onnx.dat"
    assert len(outside) == len(data.name)
    shutil.copy(data, damaged_bundle / outside.decode())
    graph = damaged_bundle / "denoiser.onnx"
    graph.write_bytes(graph.read_bytes().replace(data.name.encode(), outside))
    if find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    with pytest.raises(BundleError, match=message):
        Pipeline(damaged_bundle, runtime=runtime).generate(PROMPT)


PACKAGES = ("benchmarks", "distillation", "exporters", "quantization", "deploy")
OURS = {
    "deploy.bundle",
    "deploy.errors",
    "deploy.runtime",
    "exporters.choices",
    "exporters.guidance",
    "exporters.image_to_image",
    "exporters.hashing",
    "exporters.layouts",
    "exporters.links",
    "exporters.modulations",
    "exporters.scales",
    "quantization.errors",
}
"""All rooms of this project that drawing needs; of exporters.layouts the contract of the Swift client alone."""
HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "coremltools",
    "scipy",
    "matplotlib",
)
IMPORT = """
import sys
import deploy.runtime
"""
DRAW = """
import sys
from deploy.runtime import Pipeline
picture = Pipeline({bundle!r}).generate("a large purple cross on a black background")
assert picture.shape == (1, 64, 64, 3)
"""
LOOK = """
rooms = {{".".join(name.split(".")[:2]) for name in sys.modules if name.split(".")[0] in {packages!r} and "." in name}}
strangers = sorted(rooms - {ours!r}) + sorted(name for name in {heavy!r} if name in sys.modules)
layouts = {{name for name in sys.modules if name.startswith("exporters.layouts.")}}
strangers += sorted(layouts - {{"exporters.layouts.swift_client"}})
sys.exit(f"imported: {{strangers}}" if strangers else 0)
"""


def what_a_process_loads(program: str, bundle: Bundle) -> str:
    """What it should not, as its last words; empty where there is no such thing."""
    code = program.format(bundle=str(bundle.folder)) + LOOK.format(packages=PACKAGES, ours=OURS, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if "imported: " in done.stderr else 0), done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize("program", [IMPORT, DRAW], ids=["import", "draw"])
def test_the_runtime_loads_what_it_needs(program: str, builtin_bundle: Bundle) -> None:
    """Neither torch nor anything of what measures, builds, trains or stores."""
    assert what_a_process_loads(program, builtin_bundle) == ""


@pytest.mark.parametrize(
    "module",
    [
        "torch",
        "benchmarks.measure.timing",
        "distillation.shape_world",
        "quantization.files",
        "exporters.layouts.spec",
        "deploy.tiers.tier",
    ],
)
def test_what_it_does_not_need_would_be_found(module: str, builtin_bundle: Bundle) -> None:
    loaded = what_a_process_loads(f"{IMPORT}import {module}\n", builtin_bundle)
    assert f"'{module if module.startswith(('torch', 'exporters')) else '.'.join(module.split('.')[:2])}'" in loaded


def test_euler_by_hand() -> None:
    # v = x: x <- x (1 + ds), ds = -0.5, -0.25, -0.25.
    latents = sample(euler(lambda x, _: x, [1.0, 0.5, 0.25, 0.0]), np.ones(2, np.float32), range(3))
    assert latents.tolist() == [0.28125, 0.28125]


def test_renoise_by_hand() -> None:
    # v = 1, sigmas 1, 0.5, 0: x0 = 3 - 1 = 2; x = 0.5 * 2 + 0.5 * 4 = 3; x0 = 3 - 0.5 = 2.5; x = 1 * 2.5 + 0 * 4.
    step = renoise(lambda x, _: np.ones_like(x), [1.0, 0.5, 0.0], lambda _: np.full(1, 4, np.float32))
    latents = sample(step, np.full(1, 3, np.float32), range(2))
    assert latents.tolist() == [2.5]


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed (flash-deploy[openvino])")
def test_openvino_draws_the_same_picture(builtin_bundle: Bundle) -> None:
    """Asked for fp32 arithmetic, since the bundle is fp32: bf16, its own choice on CPUs that have it, stays near 50 dB."""
    latents = np.random.default_rng(5).standard_normal((1, 16, 8, 8), np.float32)
    expected = Pipeline(builtin_bundle).generate(PROMPT, latents=latents)
    pipeline = Pipeline(builtin_bundle, runtime="openvino", threads=1)
    assert psnr_db(expected, pipeline.generate(PROMPT, latents=latents)) >= 100
    assert psnr_db(expected, pipeline.generate(PROMPT.replace("red", "green"), latents=latents)) < 30


def test_a_runtime_that_is_not_there_names_its_extra(builtin_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.runtime.sessions.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"(?s)openvino is not installed.*flash-deploy\[openvino\]"):
        Pipeline(builtin_bundle, runtime="openvino")


def test_execution_providers_are_onnxruntimes(builtin_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="--provider"):
        Pipeline(builtin_bundle, provider="cuda", runtime="openvino")
