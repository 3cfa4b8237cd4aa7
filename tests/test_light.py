"""What must start at once loads no framework: looked up in ``sys.modules`` of a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exporters.student.student import BUILTIN_STUDENT, Student
from tests.exporters.student.test_student import edit_json

HEAVY = ("accelerate", "diffusers", "numba", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "scipy", "torch", "transformers")
INSPECT = "from deploy.cli.main import app; app(['inspect', {path!r}], standalone_mode=False)"


def loaded(program: str) -> list[str]:
    """Which of the heavy packages a program loads."""
    program += f"\nimport sys\nsys.exit('loaded: ' + ' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("loaded: "), done.stderr
    return last.removeprefix("loaded: ").split()


def test_a_request_is_light() -> None:
    assert loaded("from deploy.build import BuildRequest; BuildRequest('bundle')") == []


def test_inspecting_the_builtin_student_is_light() -> None:
    assert loaded(INSPECT.format(path=str(BUILTIN_STUDENT))) == []


@pytest.mark.parametrize("name", ["tiny", "no qk_norm, no dual", "all dual, bf16"])
def test_inspecting_a_random_student_is_light(name: str, students: dict[str, Student]) -> None:
    assert loaded(INSPECT.format(path=str(students[name].path))) == []


def test_weights_are_light(students: dict[str, Student]) -> None:
    path = str(students["all dual, bf16"].path)
    program = f"from exporters.student import open_student; s = open_student({path!r})\n"
    program += "assert sum(w.load().size for c in s.weights.values() for w in c.values()) > 10_000"
    assert loaded(program) == []


def test_the_check_can_fail_and_a_class_is_asked_where_no_formula_covers(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "vae" / "config.json", act_fn="mish")
    assert {"torch", "diffusers", "transformers"} <= set(loaded(INSPECT.format(path=str(tiny_folder))))
