from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in (
        "benchmarks",
        "deploy",
        "distillation",
        "exporters",
        "flash_deploy",
        "quantization",
        "tests",
    ):  # a build leaves traces: not in the checkout
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.Path(next(folder.glob("*.whl")))


def test_wheel_holds_the_packages_and_the_student(wheel: zipfile.Path) -> None:
    names = wheel.root.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "benchmarks",
        "deploy",
        "distillation",
        "exporters",
        "flash_deploy",
        "quantization",
    }
    for needed in (
        "benchmarks/forecast/efficiencies.toml",
        "benchmarks/results/report.html",
        "deploy/tiers/tiers.toml",
        "deploy/py.typed",
        "deploy/page/npm/package-lock.json",
        "deploy/page/web/index.html",
        "deploy/page/web/pipeline.js",
        "exporters/builtin_student/model_index.json",
        "exporters/builtin_student/transformer/diffusion_pytorch_model.safetensors",
        "exporters/builtin_student/tokenizer_3/tokenizer.json",
        "flash_deploy/py.typed",
    ):
        assert needed in names


def test_version_is_the_changelogs() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == version


def test_base_dependencies_are_the_runtimes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[]", entry)[0] for entry in project["dependencies"]}
    assert names == {"msgspec", "numpy", "onnxruntime", "pillow", "rich", "tokenizers", "typer"}


def test_constraints_pin_the_cpu_build_of_torch() -> None:
    assert "\ntorch==2.13.0\n" in (ROOT / "constraints.txt").read_text()
