"""Shared students and bundles: made once, read only."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores
os.environ.setdefault("FLASH_DEPLOY_TRACES", str(Path(__file__).parents[1] / ".traces"))  # for all workers, processes and runs
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a hub

import collections
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from deploy.build import BuildRequest, build
from deploy.bundle.folder import Bundle, open_bundle
from deploy.bundle.seal import record_file
from deploy.page.chromium import BrowserError, find_chromium
from deploy.page.page import write_page
from deploy.page.vendor import check_web_runtime
from distillation.random_students import PRESETS, TINY_VAES, StudentShape, make_student
from exporters.student.open import open_student
from exporters.student.student import Student

ROOT = Path(__file__).parents[1]
TINY = PRESETS["tiny"]
# Shapes that are not the built-in student's: depth, QK-norm, dual attention, T5, head width, stored type, the VAE's class.
SHAPES: dict[str, StudentShape] = {
    "tiny": TINY,
    "no qk_norm, no dual": replace(TINY, layers=2, dual_layers=0, qk_norm=False, t5=None),
    "all dual, bf16": replace(TINY, layers=2, heads=2, head_dim=32, dual_layers=2, dtype="bf16"),
    "tiny decoder": replace(TINY, tiny_vae=TINY_VAES["tiny"]),  # all but its VAE is traced as the first one's
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests were skipped, and why: a test that never runs here must not go unnoticed."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = collections.Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    terminalreporter.write_line(f"{len(reports)} skipped")
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"  {count}: {reason}")


@pytest.fixture(autouse=True)
def same_numbers(request: pytest.FixtureRequest) -> None:
    """A module's generator begins anew for each test: its numbers shall not depend on which tests the worker ran before."""
    generator = getattr(request.module, "RNG", None)
    if generator is not None:
        generator.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Student]:
    folder = tmp_path_factory.mktemp("students")
    return {name: open_student(make_student(shape, folder / f"s{i}")) for i, (name, shape) in enumerate(SHAPES.items())}


@pytest.fixture(scope="session")
def shapes_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ``shapes-cpu`` whose networks have learned for a step or two, to be read."""
    from tests.helpers.shapes_run import follow_shapes

    return follow_shapes(tmp_path_factory.mktemp("shapes") / "run")


@pytest.fixture
def tiny_folder(students: dict[str, Student], tmp_path: Path) -> Path:
    """A copy of the tiny student, to be damaged."""
    return Path(shutil.copytree(students["tiny"].path, tmp_path / "student"))


@pytest.fixture(scope="session")
def builtin_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(BuildRequest(output=tmp_path_factory.mktemp("bundles") / "builtin", precision="fp32"))


@pytest.fixture(scope="session")
def upon_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with the VAE's encoder."""
    output = tmp_path_factory.mktemp("bundles") / "upon"
    return build(BuildRequest(output=output, precision="fp32", vae_encoder=True))


@pytest.fixture
def damaged_bundle(builtin_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the built-in student's bundle, to be damaged."""
    return Path(shutil.copytree(builtin_bundle.folder, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def web_runtime() -> Path:
    """What pages draw with, from npm; ``make web-runtime`` fetches it, no test does."""
    folder = Path(os.environ.get("FLASH_DEPLOY_WEB_RUNTIME", ROOT / ".web-runtime"))
    if not folder.is_dir():
        pytest.skip(f"no web runtime in {folder.name}: `make web-runtime` fetches it where npm is installed")
    check_web_runtime(folder)
    return folder


@pytest.fixture(scope="session")
def chromium() -> None:
    """A browser that starts: on some systems its command only says where to get one."""
    try:
        command = find_chromium()
    except BrowserError as error:
        pytest.skip(error.headline)
    if subprocess.run([command, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"{Path(command).name} does not start")


@pytest.fixture(scope="session")
def add_page() -> Callable[[Bundle, Path, Path | None], Bundle]:
    """Copies a bundle and gives the copy a page, as a build for a browser does."""

    def add(bundle: Bundle, folder: Path, runtime: Path | None) -> Bundle:
        shutil.copytree(bundle.folder, folder)
        records = [record_file(folder, path) for path in write_page(folder, runtime)]
        manifest = msgspec.structs.replace(bundle.manifest, files=(*bundle.manifest.files, *records))
        (folder / "manifest.json").write_bytes(manifest.to_json())
        return open_bundle(folder)

    return add
