"""Measuring where torch and all else of the export extra is absent, and what is said where the bench extra is, too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.measure.memory import LINUX
from deploy.bundle.folder import Bundle

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys({absent!r}))  # as if they were not installed
sys.argv = {arguments!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def packages(entries: list[str]) -> set[str]:
    """The names that they are imported by."""
    return {re.split(r"[<>=\[]", entry)[0].replace("-", "_") for entry in entries}


BASE, BENCH, EXPORT = (
    packages(entries)
    for entries in (
        PROJECT["dependencies"],
        PROJECT["optional-dependencies"]["bench"],
        PROJECT["optional-dependencies"]["export"],
    )
)


def run(module: str, *arguments: str, absent: set[str]) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(absent=sorted(absent - BASE), arguments=[module, *arguments], module=module)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_extras_are_what_this_test_takes_them_for() -> None:
    assert {"torch", "diffusers", "jinja2", "ml_dtypes", "onnx_ir", "scipy"} <= EXPORT
    assert {"playwright", "psutil", "scipy"} == BENCH


def test_bundles_are_measured_without_the_export_extra(builtin_bundle: Bundle) -> None:
    options = ["--target", "onnxruntime-cpu", "--runs", "1", "--rounds", "1"]
    done = run("deploy.cli", "bench", str(builtin_bundle.folder), *options, absent=EXPORT - BENCH)
    assert done.returncode == 0, done.stderr
    assert "| vae_decoder |" in done.stdout


@pytest.mark.parametrize("command", [["bench", "bundle"], ["compare", "results.json"]], ids=lambda command: command[0])
def test_without_the_bench_extra_one_message_says_what_to_install(
    command: list[str], builtin_bundle: Bundle, tmp_path: Path
) -> None:
    series = {"wall_ms": [1.0] * 5, "cpu_ms": [1.0] * 5}
    measured = {"runtime": "r", "graphs": {}, "memory_method": "m", "metadata": {}}
    measured["picture"] = {"first": series, "warm": series, "peak_memory_bytes": 1}
    entry = {"fingerprint": "", "target": "t", "bytes_on_disk": 1, "graph_bytes": {}, "measured": measured}
    results = {"format": "flash-deploy benchmark", "version": 2, "measured_at": "", "commit": "", "rounds": 5}
    (tmp_path / "results.json").write_text(json.dumps(results | {"entries": [entry | {"bundle": name} for name in "ab"]}))
    (tmp_path / "bundle").symlink_to(builtin_bundle.folder)
    done = run("deploy.cli", command[0], str(tmp_path / command[1]), absent=EXPORT | BENCH)
    missing = "psutil, scipy" if command[0] == "bench" else "scipy"
    message = f"Measuring needs packages that are not installed: {missing}.\nWhat to do: pip install 'flash-deploy[bench]'\n"
    assert done.returncode == 2
    assert done.stderr == f"error: {message}"


@pytest.mark.skipif(not LINUX, reason="elsewhere memory is measured with psutil")
def test_a_device_that_only_draws_can_be_measured(builtin_bundle: Bundle) -> None:
    options = ["--runtime", "onnxruntime", "--runs", "1"]
    done = run("deploy.bench.runner", str(builtin_bundle.folder), *options, absent=EXPORT | BENCH)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["picture"]["peak_memory_bytes"] > 10_000_000
