"""Measure one browser bundle in a headless Chromium.

    python -m deploy.bench.browser_runner BUNDLE --provider wasm --runs 5 > result.json
    python -m deploy.bench.browser_runner BUNDLE --draw < wanted.json > pictures.jsonl

The page tells how long each stage took, the loading of its graphs included; CPU time and memory are those of all of the browser's
processes. The first picture is the one after which everything is downloaded and compiled.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure.energy import EnergyMeter
from benchmarks.measure.process import cpu_name, describe_machine
from benchmarks.quality.drawing import Drawn, read_wanted, to_line
from deploy.bench.process_tree import ProcessTree
from deploy.bundle.folder import Bundle, open_bundle
from deploy.errors import InputError
from deploy.page.drive import BrowserRun, PageRequest, about_page, draw_in_page, opened_page
from deploy.page.vendor import pinned
from exporters.choices import PROMPTS, Provider

STAGES = {"text": "text_ms", "denoise": "denoise_ms", "decode": "decode_ms", "loading, of all three": "load_ms"}


class _Pictures:
    """Times of pictures, one after another."""

    def __init__(self) -> None:
        self.runs: list[BrowserRun] = []
        self.cpu_ms: list[float] = []

    def series(self) -> dict[str, list[float]]:
        return {"wall_ms": [run.total_ms for run in self.runs], "cpu_ms": self.cpu_ms}

    def stage(self, field: str) -> dict[str, list[float]]:
        return {"wall_ms": [getattr(run, field) for run in self.runs], "cpu_ms": []}


def measure(bundle: Bundle, provider: Provider, runs: int, warm_ups: int) -> dict[str, Any]:
    """What :class:`benchmarks.results.record.Measured` holds, as plain data; stages in the place of graphs.

    Raises:
        InputError: there is no browser, or it cannot draw.
    """
    first, before, warm = _Pictures(), _Pictures(), _Pictures()
    with opened_page(bundle) as chromium:
        about = about_page(chromium, provider)
        tree, meter = ProcessTree(chromium.process), EnergyMeter()
        with tree.watch() as peak:
            for pictures, count in ((first, 1), (before, warm_ups), (warm, runs)):
                meter.start()
                for _ in range(count):
                    busy = tree.cpu_ms()
                    pictures.runs.append(draw_in_page(chromium, provider, PageRequest(PROMPTS[0]))[0])
                    pictures.cpu_ms.append(tree.cpu_ms() - busy)
            used = meter.joules()
    nothing: dict[str, list[float]] = {"wall_ms": [], "cpu_ms": []}
    graphs = {
        f"stage: {name}": {"load": nothing, "first": first.stage(f), "warm_ups": before.stage(f), "warm": warm.stage(f)}
        for name, f in STAGES.items()
    }
    joules = [] if used is None else [used / runs]
    return {
        "runtime": "onnxruntime-web",
        "graphs": graphs,
        "picture": {"first": first.series(), "warm": warm.series(), "joules": joules, "peak_memory_bytes": peak.memory_bytes},
        "memory_method": tree.method,
        "energy_method": meter.method,
        "metadata": _describe(bundle, provider, about),
    }


def _describe(bundle: Bundle, provider: Provider, about: dict[str, Any]) -> dict[str, str]:
    machine = describe_machine(about["threads"] if about["isolated"] and provider == "wasm" else 1)
    return {
        "device": about["adapter"] if provider == "webgpu" else cpu_name(),
        **machine,
        "runtime": f"onnxruntime-web {pinned()['onnxruntime-web']} in {about['browser']}",
        "provider": provider,
        "graphs": "loaded one after another",
        "flash_deploy": metadata.version("flash-deploy"),
        "student": bundle.manifest.student.fingerprint,
        "tier": bundle.manifest.tier,
    }


def main() -> None:
    """Do what is asked; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--provider", choices=["wasm", "webgpu"], default="wasm")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--draw", action="store_true", help="draw what standard input asks for, a line for each")
    options = parser.parse_args()
    try:
        bundle = open_bundle(options.bundle)
        if not options.draw:
            print(json.dumps(measure(bundle, options.provider, options.runs, options.warm_ups)))  # noqa: T201
            return
        wanted = read_wanted(sys.stdin.read())
        with opened_page(bundle) as chromium:
            about_page(chromium, options.provider)
            for one in wanted:
                _, picture = draw_in_page(chromium, options.provider, PageRequest(one.prompt, one.seed, keep_graphs=True))
                print(to_line(Drawn(picture, None)), flush=True)  # noqa: T201
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
