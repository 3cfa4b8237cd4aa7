"""The public names: which they are, that they load, and that the base install is enough for those that draw."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import flash_deploy
from tests.helpers.kept_bundle import V1

ROOT = Path(__file__).parents[2]
NAMES = [
    "BuildRequest",
    "Bundle",
    "CheckFailed",
    "Complaint",
    "InputError",
    "Noise",
    "Pipeline",
    "Progress",
    "Runtime",
    "StepCallback",
    "Student",
    "__version__",
    "build",
    "inspect",
    "open_bundle",
    "open_student",
    "verify",
]
MODULES = {
    "ml-dtypes": "ml_dtypes",
    "onnx-ir": "onnx_ir",
    "protobuf": "google.protobuf",
}
"""What packages of the export extra are called when they are imported, where that is not their own name."""


def test_the_names_are_these_and_no_others() -> None:
    """Whoever takes one away breaks applications."""
    assert sorted(flash_deploy.__all__) == NAMES
    assert dir(flash_deploy) == flash_deploy.__all__


def test_every_name_loads() -> None:
    for name in NAMES:
        assert getattr(flash_deploy, name) is getattr(flash_deploy, name)
    assert flash_deploy.__version__ == metadata.version("flash-deploy")
    assert flash_deploy.inspect(V1)["kind"] == "bundle"  # the one that is called otherwise at home
    with pytest.raises(AttributeError, match="module 'flash_deploy' has no attribute 'deploy_all'"):
        flash_deploy.deploy_all  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_same_names_from_the_same_places() -> None:
    tree = ast.parse((ROOT / "flash_deploy" / "__init__.py").read_text("utf-8"))
    [typed] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == flash_deploy._HOMES
    assert sorted([*seen, "__version__"]) == NAMES


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def export_modules() -> list[str]:
    """What the base install lacks, by the names that are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    base, export = (
        {entry.split(">")[0] for entry in entries}
        for entries in (project["dependencies"], project["optional-dependencies"]["export"])
    )
    return sorted(MODULES.get(name, name) for name in export - base)


BASE = """
import sys
for name in {missing!r}:
    sys.modules[name] = None  # whoever imports it is told that there is no such module
import flash_deploy
assert not [name for name in sys.modules if name.split(".")[0] in ("deploy", "exporters", "quantization", "benchmarks", "numpy")]
"""


@pytest.fixture(scope="module")
def base() -> str:
    missing = export_modules()
    assert {"torch", "onnx", "safetensors", "onnx_ir", "ml_dtypes"} <= set(missing)
    return BASE.format(missing=missing)


def test_the_base_install_draws_and_checks(base: str) -> None:
    program = f"""{base}
bundle = flash_deploy.open_bundle({str(V1)!r})
with flash_deploy.Pipeline(bundle) as pipeline:
    assert pipeline.images("a cat")[0].size == (16, 16)
assert flash_deploy.verify({str(V1)!r}).complaints == []
assert flash_deploy.inspect({str(V1)!r})["tier"] == "desktop-cpu"
try:
    flash_deploy.open_bundle("nowhere")
except flash_deploy.InputError as error:
    assert isinstance(error.complaints[0], flash_deploy.Complaint)
else:
    raise AssertionError
assert issubclass(flash_deploy.CheckFailed, Exception)
print(flash_deploy.Noise, flash_deploy.Progress, flash_deploy.Runtime, flash_deploy.StepCallback)
"""
    done = run(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["build", "BuildRequest", "open_student", "Student"])
def test_what_the_base_install_lacks_says_what_to_install(name: str, base: str) -> None:
    done = run(f"{base}\nfrom flash_deploy import {name}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: flash_deploy.{name} needs ")
    assert last.endswith(", which is not installed: pip install 'flash-deploy[export]'")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [(["--version"], 0, f"flash-deploy {metadata.version('flash-deploy')}"), (["inspect", "nowhere"], 2, "error: ")],
)
def test_the_module_is_the_command_line(arguments: list[str], code: int, says: str) -> None:
    command = [sys.executable, "-m", "flash_deploy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, says in done.stdout + done.stderr) == (code, True)
