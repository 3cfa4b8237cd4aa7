"""Measure one bundle in one runtime, in this process alone: what a device runs to be measured. Needs no torch.

    python -m deploy.bench.runner BUNDLE --runtime onnxruntime --runs 5 > result.json
    python -m deploy.bench.runner BUNDLE --draw < wanted.json > pictures.jsonl

Whole pictures are drawn, each graph loaded when its turn comes, or kept; then each graph is loaded, run once, and run again and
again on the inputs that a picture gives it. ``--draw`` draws instead what it is asked for, and measures nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.energy import EnergyMeter
from benchmarks.measure.memory import Part, Peak
from benchmarks.measure.process import cpu_name, describe_machine, timed
from benchmarks.quality.drawing import Drawn, Wanted, read_wanted, to_line
from deploy.errors import InputError
from deploy.runtime.pipeline import Pipeline
from deploy.runtime.sessions import PROVIDERS, Run
from exporters.choices import PROMPTS, Runtime

PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "coreml": "coremltools", "evaluator": "coremltools"}


class _Recorder(Pipeline):
    """A pipeline that remembers what each graph was given last."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.given: dict[str, dict[str, np.ndarray]] = {}

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.given[graph] = inputs
        return super().run(graph, inputs)

    def latents(self) -> np.ndarray:
        """Final latents of the last picture, before the VAE's scale and shift: ``[channels, height / 8, width / 8]``."""
        given: np.ndarray = self.given["vae_decoder"]["latent_sample"][0]
        picture = self.manifest.picture
        if self.manifest.layout == "native":
            return given
        return (given - np.float32(picture.shift_factor)) * np.float32(picture.scaling_factor)


@dataclass(frozen=True)
class Subject:
    """What is measured, and what runs it; all but the bundle as of :class:`~deploy.runtime.pipeline.Pipeline`.

    Attributes:
        bundle: its folder.
        runtime: the fastest if none is named.
        provider: of onnxruntime.
        threads: as many as the runtime likes if none are given.
    """

    bundle: Path
    runtime: Runtime | None = None
    provider: str = "cpu"
    threads: int | None = None

    def pipeline(self) -> Pipeline:
        """A pipeline that draws from it."""
        return Pipeline(self.bundle, self.provider, self.threads, runtime=self.runtime)

    def recorder(self, keep_graphs: bool) -> _Recorder:
        """Likewise, one that remembers."""
        return _Recorder(self.bundle, self.provider, self.threads, keep_graphs, self.runtime)


def measure(
    subject: Subject, runs: int, warm_ups: int, keep_graphs: bool = False, graphs_too: bool = True
) -> tuple[dict[str, Any], dict[str, Part]]:
    """Measure a bundle.

    Args:
        subject: the bundle, and what runs it.
        runs: measured runs of each graph, and pictures.
        warm_ups: runs of each graph before those; recorded, not counted.
        keep_graphs: draw the pictures with all graphs kept loaded.
        graphs_too: measure each graph after them.

    Returns:
        What :class:`benchmarks.results.record.Measured` holds, as plain data, times in ms, memory in bytes; and when each part
        was.

    Raises:
        InputError: the bundle or the runtime cannot be used.
    """
    parts: dict[str, Part] = {}
    graphs: dict[str, Any] = {}
    meter = EnergyMeter()
    with Peak() as peak:
        with peak.watch() as parts["picture"]:
            picture, given = _measure_pictures(subject, runs, meter, keep_graphs)
        pipeline = subject.pipeline()
        for name, inputs in given.items() if graphs_too else ():
            with peak.watch() as parts[name]:
                graphs[name] = _measure_graph(pipeline, name, inputs, runs, warm_ups)
    measured = {
        "runtime": pipeline.runtime,
        "graphs": {name: graph | _memory(parts[name]) for name, graph in graphs.items()},
        "picture": picture | _memory(parts["picture"]),
        "memory_method": peak.method,
        "energy_method": meter.method,
        "metadata": describe(pipeline, subject.provider, subject.threads, keep_graphs),
    }
    return measured, parts


def draw(subject: Subject, wanted: tuple[Wanted, ...]) -> Iterator[Drawn]:
    """Draw pictures, one after another; graphs stay loaded.

    Raises:
        InputError: the bundle or the runtime cannot be used.
    """
    pipeline = subject.recorder(keep_graphs=True)
    for one in wanted:
        picture = pipeline.generate(one.prompt, seed=one.seed)[0]
        yield Drawn(picture, pipeline.latents())


def _measure_pictures(
    subject: Subject, runs: int, meter: EnergyMeter, keep_graphs: bool
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Times and energy of pictures, the first with the opening of the bundle; and what the last one gave each graph."""
    recorders: list[_Recorder] = []

    def first_picture() -> None:
        recorders.append(subject.recorder(keep_graphs))
        recorders[0].generate(PROMPTS[0])

    first = timed(first_picture, 1)
    meter.start()
    warm = timed(lambda: recorders[0].generate(PROMPTS[0]), runs)
    used = meter.joules()
    return {"first": first, "warm": warm, "joules": [] if used is None else [used / runs]}, recorders[0].given


def _measure_graph(pipeline: Pipeline, name: str, inputs: dict[str, np.ndarray], runs: int, warm_ups: int) -> dict[str, Any]:
    loaded: list[Run] = []
    load = timed(lambda: loaded.append(pipeline.load(name)), 1)
    run = functools.partial(loaded[0], inputs)
    return {"load": load, "first": timed(run, 1), "warm_ups": timed(run, warm_ups), "warm": timed(run, runs)}


def _memory(part: Part) -> dict[str, int | None]:
    return {"peak_memory_bytes": part.memory_bytes, "peak_resident_bytes": part.resident_bytes}


def describe(pipeline: Pipeline, provider: str, threads: int | None, keep_graphs: bool = False) -> dict[str, str]:
    """What a measurement depends on, in words."""
    manifest = pipeline.manifest
    return {
        "device": cpu_name() if provider == "cpu" else provider,
        **describe_machine(threads),
        "runtime": f"{pipeline.runtime} {metadata.version(PACKAGES[pipeline.runtime])}",
        "provider": PROVIDERS[provider] if pipeline.runtime == "onnxruntime" else "CPU",
        "graphs": "kept loaded" if keep_graphs else "loaded one after another",
        "flash_deploy": metadata.version("flash-deploy"),
        "student": manifest.student.fingerprint,
        "tier": manifest.tier,
    }


def main() -> None:
    """Measure and print JSON; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino", "coreml", "evaluator"], default=None)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--keep-graphs", action="store_true", help="keep graphs loaded between pictures")
    parser.add_argument("--no-graphs", action="store_true", help="measure pictures alone")
    parser.add_argument("--draw", action="store_true", help="draw what standard input asks for, a line for each")
    parser.add_argument("--parts", action="store_true", help="say on stderr when each part was, in s of the monotonic clock")
    options = parser.parse_args()
    subject = Subject(options.bundle, options.runtime, options.provider, options.threads)
    try:
        if options.draw:
            for drawn in draw(subject, read_wanted(sys.stdin.read())):
                print(to_line(drawn), flush=True)  # noqa: T201
            return
        measured, parts = measure(subject, options.runs, options.warm_ups, options.keep_graphs, not options.no_graphs)
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    if options.parts:
        print(json.dumps({name: [part.began, part.ended] for name, part in parts.items()}), file=sys.stderr)  # noqa: T201
    print(json.dumps(measured))  # noqa: T201


if __name__ == "__main__":
    main()
