"""Find which share of this machine's peaks its runtimes reach, and how far off a forecast made of that is.

    python -m benchmarks.studies.roofline.bundles work   # three students and the built-in one, each in four schemes
    python -m benchmarks.studies.roofline.fit work/bundles/* --json samples.json
    python -m benchmarks.studies.roofline.fit --samples samples.json --write

Each graph of each ONNX bundle is run in onnxruntime, and denoiser and VAE in OpenVINO too where it is installed: on one thread,
its CPU time, the best of several runs. The shares are fitted to all of them, in the logarithm. Their error is another: for each
student in turn they are fitted to the other students' graphs and predict its own (leave one out). Graphs that take less than a
millisecond are listed, but do not make the range: there a forecast says no more than the order of magnitude.

The machine's own peaks are measured first: fp32 by a large product in each runtime; int8 is four times that where the processor
has VNNI and bf16 twice where it has AVX512-BF16, as the instructions are defined; bandwidth by copying 256 MB.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.forecast.cost import GraphCost, Operator
from benchmarks.forecast.efficiencies import FILE, efficiency_toml, write_section
from benchmarks.forecast.onnx_cost import count_onnx
from benchmarks.forecast.roofline import SHORT_SECONDS, Efficiency, Place, Processor
from benchmarks.measure.timing import openvino_model, session
from benchmarks.studies.command import manifest
from exporters.choices import RUN_ONCE
from quantization.files import write_bytes

NINE_OF_TEN = 0.9
RUNS_AS: dict[str, dict[Any, Any]] = {
    "onnxruntime-cpu": {"fp16": "fp32", "w8a8": "int8", "blocks8": "int8", "blocks4": "int8"},
    "openvino-cpu": {"fp32": "bf16", "fp16": "bf16", "w8a8": "int8", "blocks8": "int8", "blocks4": "int8"},
}


class Sample(msgspec.Struct, frozen=True):
    """One graph's time in one runtime, on one thread.

    Attributes:
        student: name of the bundle's student.
        bundle: folder name.
        graph: its name.
        target: ``onnxruntime-cpu`` or ``openvino-cpu``.
        runs_per_picture: how often a picture runs it.
        cpu_seconds: the best run.
        file: the graph's file.
    """

    student: str
    bundle: str
    graph: str
    target: str
    runs_per_picture: int
    cpu_seconds: float
    file: str


class Samples(msgspec.Struct, frozen=True):
    """What was measured, and the machine that it was measured on."""

    machine: str
    peak_gflops: dict[str, float]
    bandwidth_gb_s: float
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Counted:
    """A sample with its graph's operators, equal ones counted once.

    Attributes:
        sample: the measurement.
        operators: how often each occurs.
    """

    sample: Sample
    operators: Mapping[Operator, int]


def measure(bundles: Sequence[Path], runs: int, tell: Callable[[str], None]) -> Iterator[Sample]:
    """Run every graph; one that several bundles of a student share is run once."""
    seen = set()
    for folder in bundles:
        about = manifest(folder)
        if about["model_format"] != "onnx" or about["layout"] != "native":
            continue
        student, mixed = about["student"]["name"], about["precision"] == "mixed"
        for graph in about["graphs"]:
            name, file = graph["name"], folder / graph["path"]
            targets = ["onnxruntime-cpu"]
            # OpenVINO is not given what runs once: compiling is not worth it. In other bundles it is asked for fp32, which is
            # not what its shares are of.
            if mixed and name not in RUN_ONCE and find_spec("openvino") is not None:
                targets.append("openvino-cpu")
            for target in targets:
                key = (student, name, target, hashlib.sha256(file.read_bytes()).hexdigest())
                if key in seen:
                    continue
                seen.add(key)
                tell(f"{folder.name}: {name} on {target}")
                best = _best_cpu(_loaded(file, target, graph["inputs"]), runs)
                steps = len(about["sampling"]["timesteps"]) if name == "denoiser" else 1
                yield Sample(student, folder.name, name, target, steps, best, str(file.resolve()))


def _loaded(file: Path, target: str, ports: Sequence[Mapping[str, Any]]) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    feed = {
        port["name"]: np.ones(port["shape"], port["dtype"])
        if port["dtype"].startswith("int")
        else rng.standard_normal(port["shape"], np.float32)
        for port in ports
    }
    if target == "onnxruntime-cpu":
        loaded = session(file, 1)
        return lambda: loaded.run(None, feed)
    compiled = openvino_model(file, "bf16", 1)
    return lambda: compiled(feed)


def _best_cpu(run: Callable[[], Any], runs: int) -> float:
    """The least disturbed run's CPU time, after a warm-up; short runs are repeated."""
    began = time.process_time()
    run()
    repeats = max(1, min(200, round(0.05 / max(time.process_time() - began, 1e-6))))
    best = math.inf
    for _ in range(runs):
        began = time.process_time()
        for _ in range(repeats):
            run()
        best = min(best, (time.process_time() - began) / repeats)
    return best


def machine_peaks(runs: int = 40) -> tuple[dict[str, float], float]:
    """This machine's 10^9 FLOPs a second by unit, and 10^9 bytes a second, of one thread."""
    size = 1536
    import onnx_ir as ir

    x, out = (ir.Value(name=name, shape=ir.Shape([size, size]), type=ir.TensorType(ir.DataType.FLOAT)) for name in ("x", "y"))
    weight = np.random.default_rng(0).standard_normal((size, size), np.float32)
    held = ir.Value(name="w", const_value=ir.Tensor(weight, name="w"))
    node = ir.node("MatMul", [x, held], outputs=[out])
    graph = ir.Graph([x], [out], nodes=[node], initializers=[held], opset_imports={"": 20})
    content = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    loaded, feed = session(content, 1), {"x": weight}
    candidates: list[Callable[[], Any]] = [lambda: loaded.run(None, feed)]
    if find_spec("openvino") is not None:
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        )
        candidates.append(lambda: compiled(feed))
    fp32 = max(2 * size**3 / _best_cpu(run, runs) / 1e9 for run in candidates)
    info = Path("/proc/cpuinfo")
    flags = info.read_text("utf-8").split() if info.exists() else []
    peaks = {"fp32": fp32, "int8": fp32 * (4 if {"avx512_vnni", "avx_vnni"} & set(flags) else 1)}
    peaks["bf16"] = fp32 * (2 if "avx512_bf16" in flags else 1)
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    return peaks, 2 * source.nbytes / _best_cpu(lambda: np.copyto(target, source), runs) / 1e9


def fit(counted: Sequence[Counted], processor: Processor, runs_as: Mapping[Any, Any]) -> Efficiency:
    """The shares that predict these samples best, each sample's error counted as a ratio."""
    from scipy.optimize import least_squares

    products = sorted({operator.arithmetic for c in counted for operator in c.operators if operator.work.group == "product"})
    names = [*products, "attention", "convolution", "weights", "activations", "rounding", "overhead_us"]
    start = np.log([*(0.7 for _ in products), 0.6, 0.6, 0.7, 1.5, 0.1, 2.0])
    highest = np.log([*(1.0 for _ in products), 1.0, 1.0, *(100.0,) * 4])  # no more than a peak

    def shares(parameters: np.ndarray) -> Efficiency:
        values = dict(zip(names, map(float, np.exp(parameters)), strict=True))
        of_products: Any = {name: values.pop(name) for name in products}
        return Efficiency(source="", product=of_products, runs_as=dict(runs_as), actual_over_predicted=(1.0, 1.0), **values)

    def errors(parameters: np.ndarray) -> np.ndarray:
        efficiency = shares(parameters)
        residuals = [math.log(predicted_seconds(c, Place(processor, efficiency)) / c.sample.cpu_seconds) for c in counted]
        # What the samples say nothing of stays where it started.
        return np.array([*residuals, *(0.02 * (parameters - start))])

    solution = least_squares(errors, start, bounds=(np.log(1e-3), highest), loss="soft_l1", f_scale=0.1, diff_step=1e-3)
    return shares(solution.x)


def predicted_seconds(counted: Counted, place: Place) -> float:
    """Seconds of one run."""
    fastest = max(place.processor.peak_gflops.values())
    return sum(
        times * place.seconds(operator.work, operator.arithmetic, place.runs(operator) or fastest)[0]
        for operator, times in counted.operators.items()
    )


@dataclass(frozen=True)
class Check:
    """A forecast beside what was measured: of a graph, or of a picture's graphs together."""

    student: str
    bundle: str
    graph: str
    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


def leave_one_out(counted: Sequence[Counted], processor: Processor, runs_as: Mapping[Any, Any]) -> list[Check]:
    """Each student's graphs, predicted by shares that were fitted to the other students'."""
    checks = []
    for student in dict.fromkeys(c.sample.student for c in counted):
        efficiency = fit([c for c in counted if c.sample.student != student], processor, runs_as)
        checks += [
            Check(
                student, c.sample.bundle, c.sample.graph, c.sample.cpu_seconds, predicted_seconds(c, Place(processor, efficiency))
            )
            for c in counted
            if c.sample.student == student
        ]
    return checks


def actual_over_predicted(checks: Sequence[Check]) -> tuple[float, float]:
    """A factor both ways, which nine of ten measurements keep to; of graphs that take a millisecond at least."""
    factors = [max(check.ratio, 1 / check.ratio) for check in checks if check.measured >= SHORT_SECONDS]
    factor = float(np.quantile(factors, NINE_OF_TEN))
    return 1 / factor, factor


def count(samples: Sequence[Sample]) -> list[Counted]:
    """Samples with what their graphs cost; a file that two runtimes ran is counted once."""
    costs: dict[str, GraphCost] = {}
    for sample in samples:
        costs.setdefault(sample.file, count_onnx(sample.file))
    return [Counted(sample, collections.Counter(map(_nameless, costs[sample.file].operators))) for sample in samples]


def _nameless(operator: Operator) -> Operator:
    return Operator(operator.kind, "", operator.work, operator.arithmetic, operator.dtype)


def main() -> None:
    """Measure or read samples, fit, print the errors, and write the shares if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, help="ONNX bundles of several students, native layout")
    parser.add_argument("--runs", type=int, default=3, help="runs of each graph; the best counts")
    parser.add_argument("--json", type=Path, help="write the samples")
    parser.add_argument("--samples", type=Path, help="read samples in place of measuring; their bundles must still be there")
    parser.add_argument("--all", action="store_true", help="print every graph")
    parser.add_argument("--write", action="store_true", help="put the shares into efficiencies.toml")
    options = parser.parse_args()
    if options.samples is not None:
        collected = msgspec.json.decode(options.samples.read_bytes(), type=Samples)
    else:
        peaks, bandwidth = machine_peaks()
        samples = tuple(measure(options.bundles, options.runs, lambda text: print(text, flush=True)))
        collected = Samples(_cpu_name(), peaks, bandwidth, samples)
    if options.json is not None:
        write_bytes(options.json, msgspec.json.format(msgspec.json.encode(collected), indent=1))
    peaks_said = ", ".join(f"{unit} {gflops:.0f} GFLOP/s" for unit, gflops in collected.peak_gflops.items())
    print(f"\n{collected.machine}, one thread: {peaks_said}, {collected.bandwidth_gb_s:.1f} GB/s")
    for target in dict.fromkeys(sample.target for sample in collected.samples):
        _report(target, collected, options.all, options.write)


def _summary(checks: Sequence[Check]) -> str:
    ratios = [check.ratio for check in checks if check.measured >= SHORT_SECONDS]
    short = [check.ratio for check in checks if check.measured < SHORT_SECONDS]
    beyond = f"{len(short)}: {min(short):.2f} to {max(short):.2f}" if short else "none"
    if not ratios:
        return f"0 | | | | {beyond}"
    return f"{len(ratios)} | {np.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} | {beyond}"


def _report(target: str, collected: Samples, every: bool, write: bool) -> None:
    counted = count([sample for sample in collected.samples if sample.target == target])
    peaks: Any = collected.peak_gflops
    processor = Processor(description=collected.machine, peak_gflops=peaks, bandwidth_gb_s=collected.bandwidth_gb_s)
    runs_as = RUNS_AS[target]
    efficiency, checks = fit(counted, processor, runs_as), leave_one_out(counted, processor, runs_as)
    spread = actual_over_predicted(checks)
    print(f"\n{target}: {len(counted)} graphs of {len({c.sample.student for c in counted})} students\n")
    if every:
        print("| left out | bundle | graph | measured, ms | predicted, ms | ratio |\n|---|---|---|---|---|---|")
        for check in checks:
            figures = f"{1000 * check.measured:.1f} | {1000 * check.predicted:.1f} | {check.ratio:.2f}"
            print(f"| {check.student} | {check.bundle} | {check.graph} | {figures} |")
    else:
        print("| left out | graphs | predicted over measured, median | least | most | under 1 ms |\n|---|---|---|---|---|---|")
        for student in dict.fromkeys(check.student for check in checks):
            print(f"| {student} | {_summary([check for check in checks if check.student == student])} |")
    print(f"\nActual over predicted, nine of ten of at least 1 ms: {spread[0]:.2f} to {spread[1]:.2f}.")
    source = (
        f"fitted to {len(counted)} graphs of {len({c.sample.student for c in counted})} students, {collected.machine}, "
        f"one thread; taken to scale over cores (python -m benchmarks.studies.roofline.fit)"
    )
    shares = {
        key: value for key, value in msgspec.to_builtins(efficiency).items() if key not in ("source", "actual_over_predicted")
    }
    text = efficiency_toml(target, source, shares, spread)
    print("\n" + text)
    if write:
        write_section(FILE, target, text)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "this machine")


if __name__ == "__main__":
    main()
