"""The public interface of distillation: names, arguments, and the example of docs/distillation.md as it is printed."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distillation import fake, flow, loop, matching

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distillation.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (flow.x0, ["x", "t", "v"]),
        (flow.noise, ["x", "t", "v"]),
        (flow.score, ["x", "t", "v"]),
        (flow.velocity, ["x", "t", "score"]),
        (flow.transition, ["s", "t"]),
        (matching.direction, ["x_s", "s", "v_real", "v_fake", "normalise"]),
        (fake.loss, ["model", "x_s", "s", "t", "noise", "cond"]),
        (loop.run_stage, ["stage", "networks", "batches", "seed"]),
    ],
)
def test_arguments(function: Callable[..., Any], arguments: list[str]) -> None:
    assert list(inspect.signature(function).parameters)[: len(arguments)] == arguments
    assert function.__doc__
    assert f"{function.__name__}({', '.join(arguments)})" in PAGE


def test_the_page_s_example() -> None:
    """Mean within .05 and deviation within .05 of the data's: sampling error of 10,000 is .005, the rest is the student's."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    run = subprocess.run([sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=True, cwd=ROOT)
    mean, deviation = map(float, re.findall(r"-?\d+\.\d+(?= \()", run.stdout))
    assert mean == pytest.approx(1, abs=0.05)
    assert deviation == pytest.approx(0.5, abs=0.05)
