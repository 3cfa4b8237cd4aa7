"""Prepare, measure or draw with one peer, in this process alone.

    python -m benchmarks.peers.runner PEER JOB --prepare
    python -m benchmarks.peers.runner PEER JOB --runs 5 > result.json
    python -m benchmarks.peers.runner PEER JOB --draw < wanted.json > pictures.jsonl

JOB is JSON (:class:`benchmarks.peers.peer.Job`). All components are in memory at once and stay there, as diffusers' users have
it; each component's times are those of its calls in the pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from benchmarks.measure.energy import EnergyMeter
from benchmarks.measure.memory import Peak
from benchmarks.measure.process import cpu_name, describe_machine, timed
from benchmarks.peers.diffusers_eager import DiffusersEager
from benchmarks.peers.peer import Job, Peer, read_job
from benchmarks.peers.registry import PEERS
from benchmarks.quality.drawing import Drawn, noise, read_wanted, to_line
from exporters.choices import PROMPTS
from exporters.layouts.spec import VAE_SCALE
from exporters.quiet import quiet_libraries
from quantization.errors import InputError

COMPONENTS = {
    "text_encoder": ("text_encoder", "forward"),
    "text_encoder_2": ("text_encoder_2", "forward"),
    "text_encoder_3": ("text_encoder_3", "forward"),
    "transformer": ("transformer", "forward"),
    "vae_decoder": ("vae", "decode"),
}
"""Names in tables: attribute of the pipeline, and what of it is called."""


class _Drawing:
    """A peer's pipeline that draws a job's pictures."""

    def __init__(self, peer: Peer, job: Job) -> None:
        from exporters.reference.pictures import PinnedPipeline

        self.student = job.open_student()
        self.pipeline = peer.open(job, self.student)
        self._pinned = PinnedPipeline(self.pipeline, job.sampling, job.max_sequence_length)
        self._shape = (self.student.configs["transformer"]["in_channels"], job.height // VAE_SCALE, job.width // VAE_SCALE)
        self._steps = len(job.sampling.timesteps)

    def draw(self, prompt: str, seed: int) -> Drawn:
        latents, step_noise = noise(seed, self._shape, self._steps)
        pictures, final = self._pinned.draw(prompt, latents, step_noise)
        return Drawn(pictures[0], final[0])


class _Clock:
    """Times every call of a function, in ms."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        began, busy = time.perf_counter(), time.process_time()
        result = self._run(*arguments, **named)
        self.wall_ms.append(1000 * (time.perf_counter() - began))
        self.cpu_ms.append(1000 * (time.process_time() - busy))
        return result

    def part(self, start: int, stop: int | None = None) -> dict[str, list[float]]:
        return {"wall_ms": self.wall_ms[start:stop], "cpu_ms": self.cpu_ms[start:stop]}


def measure(peer: Peer, job: Job, runs: int, warm_ups: int) -> dict[str, Any]:
    """What :class:`benchmarks.results.record.Measured` holds, as plain data; the first picture includes loading everything."""
    drawings: list[_Drawing] = []
    clocks: dict[str, _Clock] = {}

    def first_picture() -> None:
        drawings.append(_Drawing(peer, job))
        for name, (attribute, called) in COMPONENTS.items():
            if (component := getattr(drawings[0].pipeline, attribute, None)) is not None:
                clocks[name] = _Clock(getattr(component, called))
                setattr(component, called, clocks[name])
        drawings[0].draw(PROMPTS[0], 0)

    meter = EnergyMeter()
    with Peak() as peak, peak.watch() as part:
        first = timed(first_picture, 1)
        timed(lambda: drawings[0].draw(PROMPTS[0], 0), warm_ups)
        before = {name: len(clock.wall_ms) for name, clock in clocks.items()}
        meter.start()
        warm = timed(lambda: drawings[0].draw(PROMPTS[0], 0), runs)
        used = meter.joules()
    nothing: dict[str, list[float]] = {"wall_ms": [], "cpu_ms": []}
    graphs = {
        name: {
            "load": nothing,
            "first": clock.part(0, 1),
            "warm_ups": clock.part(1, before[name]),
            "warm": clock.part(before[name]),
        }
        for name, clock in clocks.items()
    }
    memory = {"peak_memory_bytes": part.memory_bytes, "peak_resident_bytes": part.resident_bytes}
    return {
        "runtime": "torch" if isinstance(peer, DiffusersEager) else peer.packages[3],
        "graphs": graphs,
        "picture": {"first": first, "warm": warm, "joules": [] if used is None else [used / runs], **memory},
        "memory_method": peak.method,
        "energy_method": meter.method,
        "metadata": _describe(peer, job),
    }


def _describe(peer: Peer, job: Job) -> dict[str, str]:
    return {
        "device": cpu_name(),
        **describe_machine(job.threads),
        "runtime": ", ".join(f"{name} {metadata.version(name)}" for name in peer.packages),
        "graphs": "kept loaded",
        "flash_deploy": metadata.version("flash-deploy"),
        "student": job.fingerprint,
    }


def main() -> None:
    """Do what is asked; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("job")
    parser.add_argument("--prepare", action="store_true", help="write the files that this peer needs")
    parser.add_argument("--draw", action="store_true", help="draw what standard input asks for, a line for each")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-ups", type=int, default=1)
    options = parser.parse_args()
    quiet_libraries()
    peer = PEERS[options.peer]
    try:
        job = read_job(options.job)
        if options.prepare:
            peer.prepare(job, job.open_student())
        elif options.draw:
            wanted = read_wanted(sys.stdin.read())
            drawing = _Drawing(peer, job)
            for one in wanted:
                print(to_line(drawing.draw(one.prompt, one.seed)), flush=True)
        else:
            print(json.dumps(measure(peer, job, options.runs, options.warm_ups)))
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
