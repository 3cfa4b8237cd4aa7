"""Browser targets: measured where there is a Chromium and a web runtime, and absent with a reason where there is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.drawing import Wanted
from deploy.bench.processes import Job, draw
from deploy.bench.request import BenchRequest
from deploy.bench.run import bench
from deploy.bench.targets import Assignment, find_target
from deploy.bundle.folder import Bundle
from deploy.errors import InputError
from deploy.runtime.pipeline import Pipeline
from exporters.reference.decibels import psnr_db

PROMPT = "two green triangles on a black background"
REQUIRED_DB = 90  # as in test_browser.py: fp32 on both sides; another seed or prompt leaves less than 30


@pytest.fixture
def page_bundle(builtin_bundle: Bundle, add_page, web_runtime: Path, tmp_path: Path) -> Bundle:
    bundle: Bundle = add_page(builtin_bundle, tmp_path / "bundle", web_runtime)
    return bundle


def test_a_browser_is_measured_and_draws(chromium: None, page_bundle: Bundle, tmp_path: Path) -> None:
    wasm, webgpu = bench(
        BenchRequest((page_bundle.folder,), ("browser-wasm", "browser-webgpu"), runs=2, rounds=1)
    ).results.entries
    assert wasm.measured is not None
    assert len(wasm.measured.picture.warm.wall_ms) == 2
    assert list(wasm.measured.graphs) == [f"stage: {n}" for n in ("text", "denoise", "decode", "loading, of all three")]
    assert "onnxruntime-web" in wasm.measured.metadata["runtime"]
    assert min(wasm.measured.picture.warm.cpu_ms) > 0
    assert (wasm.measured.picture.peak_memory_bytes or 0) > 50_000_000
    assert (webgpu.measured is None) == ("no adapter" in webgpu.absent)
    target = find_target("browser-wasm")
    job = Job("b", "browser-wasm", target, Assignment(page_bundle, str(page_bundle.folder), None, tmp_path, None), "")
    (drawn,) = draw(job, [Wanted(PROMPT, 4)], None)
    assert drawn.latents is None
    expected = Pipeline(page_bundle, runtime="onnxruntime").generate(PROMPT, seed=4)[0]
    assert psnr_db(expected, drawn.picture) > REQUIRED_DB
    assert psnr_db(np.roll(expected, 8, axis=1), drawn.picture) < 30  # the comparison can fail


def test_no_browser(page_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(InputError, match=r"browser-wasm: No Chromium is installed: PATH: not found"):
        bench(BenchRequest((page_bundle.folder,), ("browser-wasm",)))


def test_no_playwright(page_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.extra.find_spec", lambda name: None if name == "playwright" else object())
    with pytest.raises(InputError, match=r"browser-wasm: playwright is not installed \(pip install 'flash-deploy\[bench\]'\)"):
        bench(BenchRequest((page_bundle.folder,), ("browser-wasm",)))


def test_no_web_runtime(builtin_bundle: Bundle, add_page, tmp_path: Path) -> None:
    bundle = add_page(builtin_bundle, tmp_path / "bundle", None)
    with pytest.raises(InputError, match="the bundle holds no onnxruntime-web"):
        bench(BenchRequest((bundle.folder,), ("browser-wasm",)))
