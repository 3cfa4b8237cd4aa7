"""Measure one bundle in one runtime, in this process alone: what a device runs to be measured. Needs no torch.

    python -m deploy.runner BUNDLE --runtime onnxruntime --runs 5 > result.json

Whole pictures are drawn, each graph loaded when its turn comes; then each graph is loaded, run once, and run again and again
on the inputs that a picture gives it. Memory is sampled every 2 ms while a part runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import InputError
from deploy.runtime import Pipeline
from deploy.sessions import PROVIDERS, Run, Runtime

PROMPT = "a red circle left of a blue square on a white background"
SAMPLE_SECONDS = 0.002
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "coreml": "coremltools", "evaluator": "coremltools"}


class _Peak:
    """The most memory that this process held while a part ran, and how that was found out."""

    def __init__(self) -> None:
        self.linux = Path("/proc/self/status").exists()
        self.method = "anonymous, sampled from /proc/self/status" if self.linux else "resident, of the whole process, getrusage"

    @contextmanager
    def watch(self) -> Iterator[Callable[[], int]]:
        """Gives a function that says the peak so far, in bytes."""
        peak, stop = [self._now()], threading.Event()

        def sample() -> None:
            while not stop.wait(SAMPLE_SECONDS):
                peak[0] = max(peak[0], self._now())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield lambda: max(peak[0], self._now())
        finally:
            stop.set()
            thread.join()

    def _now(self) -> int:
        if not self.linux:
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _timed(run: Callable[[], Any], times: int) -> dict[str, list[float]]:
    wall, cpu = [], []
    for _ in range(times):
        began, busy = time.perf_counter(), time.process_time()
        run()
        wall.append(1000 * (time.perf_counter() - began))
        cpu.append(1000 * (time.process_time() - busy))
    return {"wall_ms": wall, "cpu_ms": cpu}


class _Recorder(Pipeline):
    """A pipeline that remembers what each graph was given last."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.given: dict[str, dict[str, np.ndarray]] = {}

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.given[graph] = inputs
        return super().run(graph, inputs)


def measure(
    bundle: Path, runtime: Runtime | None, provider: str, threads: int | None, runs: int, warm_ups: int
) -> dict[str, Any]:
    """Measure a bundle.

    Args:
        bundle: its folder.
        runtime: of :class:`~deploy.runtime.Pipeline`.
        provider: likewise.
        threads: likewise.
        runs: measured runs of each graph, and pictures.
        warm_ups: runs of each graph before those; recorded, not counted.

    Returns:
        What :class:`benchmarks.results.Measured` holds, as plain data. Times in ms, memory in bytes.

    Raises:
        InputError: the bundle or the runtime cannot be used.
    """
    peak = _Peak()
    pipeline = _Recorder(bundle, provider, threads, runtime=runtime)
    with peak.watch() as highest:
        first = _timed(lambda: pipeline.generate(PROMPT), 1)
        pictures = _timed(lambda: pipeline.generate(PROMPT), runs)
        total_memory = highest()
    graphs = {}
    for name, inputs in pipeline.given.items():
        with peak.watch() as highest:
            graphs[name] = _measure_graph(pipeline, name, inputs, runs, warm_ups)
            graphs[name]["peak_memory_bytes"] = highest()
    return {
        "runtime": pipeline.runtime,
        "graphs": graphs,
        "picture": {"first": first, "warm": pictures, "peak_memory_bytes": total_memory},
        "memory_method": peak.method,
        "metadata": describe(pipeline, provider, threads),
    }


def _measure_graph(pipeline: Pipeline, name: str, inputs: dict[str, np.ndarray], runs: int, warm_ups: int) -> dict[str, Any]:
    loaded: list[Run] = []
    load = _timed(lambda: loaded.append(pipeline.load(name)), 1)
    run = functools.partial(loaded[0], inputs)
    return {"load": load, "first": _timed(run, 1), "warm_ups": _timed(run, warm_ups), "warm": _timed(run, runs)}


def describe(pipeline: Pipeline, provider: str, threads: int | None) -> dict[str, str]:
    """What a measurement depends on, in words."""
    manifest = pipeline.manifest
    return {
        "device": _cpu_name() if provider == "cpu" else provider,
        "cpu": _cpu_name(),
        "cpus": str(os.cpu_count()),
        "memory_gb": f"{_memory_bytes() / 1e9:.0f}",
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "runtime": f"{pipeline.runtime} {metadata.version(PACKAGES[pipeline.runtime])}",
        "provider": PROVIDERS[provider] if pipeline.runtime == "onnxruntime" else "CPU",
        "threads": "the runtime's choice" if threads is None else str(threads),
        "flash_deploy": metadata.version("flash-deploy"),
        "student": manifest.student.fingerprint,
        "tier": manifest.tier,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def main() -> None:
    """Measure and print JSON; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino", "coreml", "evaluator"], default=None)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-ups", type=int, default=1)
    options = parser.parse_args()
    try:
        found = measure(options.bundle, options.runtime, options.provider, options.threads, options.runs, options.warm_ups)
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
