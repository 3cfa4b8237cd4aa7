"""Interleaved timing: every candidate in turn, again and again, so that a busy moment of the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Timing:
    """Times of one candidate, in seconds; ``cpu`` sums all threads of the process.

    Attributes:
        wall: wall time of each run.
        cpu: process CPU time of each run.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def best_cpu(self) -> float:
        """The least disturbed run."""
        return min(self.cpu)

    @property
    def median_cpu(self) -> float:
        """The typical run."""
        return statistics.median(self.cpu)


def interleave(candidates: Mapping[str, Callable[[], Any]], runs: int, warm_ups: int = 1) -> dict[str, Timing]:
    """Run every candidate ``warm_ups + runs`` times in turn; the warm-ups do not count."""
    walls: dict[str, list[float]] = {name: [] for name in candidates}
    cpus: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(warm_ups + runs):
        for name, candidate in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            candidate()
            if i >= warm_ups:
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    return {name: Timing(tuple(walls[name]), tuple(cpus[name])) for name in candidates}


def table(timings: Mapping[str, Timing], baseline: str, beside: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """A Markdown table of ratios to the baseline: CPU time (best and median run), wall time (median), and more columns beside."""
    base, more = timings[baseline], beside or {}
    heads = [f"CPU time, best of {len(base.cpu)}", "CPU time, median", "wall time, median", *more]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, timing in timings.items():
        ratios = (
            timing.best_cpu / base.best_cpu,
            timing.median_cpu / base.median_cpu,
            statistics.median(timing.wall) / statistics.median(base.wall),
        )
        cells = [*(f"{ratio:.2f}" for ratio in ratios), *(column[name] for column in more.values())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def session(model: Any, threads: int | None = None) -> Any:
    """An onnxruntime CPU session of a file or of serialized bytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        str(model) if hasattr(model, "parts") else model, options, providers=["CPUExecutionProvider"]
    )


def openvino_model(file: Any, arithmetic: Literal["f32", "bf16"], threads: int | None = None) -> Any:
    """A graph compiled by OpenVINO for the CPU; products with integer weights round their inputs in groups of 128."""
    import openvino

    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": arithmetic, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    return openvino.Core().compile_model(str(file), "CPU", config)
