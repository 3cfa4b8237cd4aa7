"""Measure bundles on targets, side by side: each in a fresh process, round after round, so that a busy moment hits all alike."""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from benchmarks.results import FORMAT, VERSION, Entry, Measured, Results
from benchmarks.targets import DEFAULT, Target, find_target
from deploy.bundle import Bundle, open_bundle
from deploy.errors import Complaint, InputError
from deploy.pictures import to_8_bit
from deploy.runtime import Pipeline

RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    Attributes:
        bundles: folders.
        targets: names of :data:`benchmarks.targets.TARGETS`; by default those that run the bundles' formats.
        runs: measured runs of each graph and picture in each round.
        rounds: fresh processes for each bundle and target, interleaved.
        warm_ups: runs before those.
        threads: threads of one operator.
        student: also compare graphs and pictures with this student in diffusers.
        remote: a command with ``{command}`` in it, for a device elsewhere: ``ssh phone {command}``.
    """

    bundles: tuple[Path, ...]
    targets: tuple[str, ...] = ()
    runs: int = 3
    rounds: int = 5
    warm_ups: int = 1
    threads: int | None = None
    student: Path | None = None
    remote: str | None = None

    def __post_init__(self) -> None:
        complaints = [
            Complaint(f"--{name.replace('_', '-')}", "wrong", "1 or more", str(getattr(self, name)))
            for name in ("runs", "rounds")
            if getattr(self, name) < 1
        ]
        if self.remote is not None and "{command}" not in self.remote:
            complaints.append(Complaint("--remote", "wrong", "a command with {command} in it", self.remote))
        if not self.bundles:
            complaints.append(Complaint("BUNDLE", "none given"))
        if complaints:
            raise InputError("The benchmark cannot be run.", complaints)


def bench(request: BenchRequest, tell: Callable[[str], None] | None = None) -> Results:
    """Measure.

    Raises:
        InputError: a bundle or target cannot be used, or a measurement fails.
    """
    tell = tell or (lambda text: None)
    bundles = [open_bundle(folder) for folder in request.bundles]
    jobs = [(bundle, name) for bundle in bundles for name in _targets(request, bundle)]
    if not any(not find_target(name).absent() for _, name in jobs):
        raise InputError("There is nothing to measure.", [Complaint(name, find_target(name).absent()) for _, name in jobs])
    measured: dict[int, Measured] = {}
    energy: dict[int, list[float]] = {}
    for i in range(request.rounds):
        for j, (bundle, name) in enumerate(jobs):
            target = find_target(name)
            if request.remote is None and target.absent():
                continue
            tell(f"round {i + 1} of {request.rounds}: {bundle.folder.name} on {name}")
            before = _energy_joules()
            found = _run(request, bundle, target)
            after = _energy_joules()
            if before is not None and after is not None and after >= before:
                energy.setdefault(j, []).append(after - before)
            measured[j] = measured[j] + found if j in measured else found
    quality = {bundle.folder: _quality(request, bundle, tell) for bundle in bundles}
    entries = tuple(
        Entry(
            bundle=bundle.folder.name,
            fingerprint=hashlib.sha256((bundle.folder / "manifest.json").read_bytes()).hexdigest(),
            target=name if request.remote is None else f"{name}, remote",
            bytes_on_disk=sum(record.size_bytes for record in bundle.manifest.files),
            graph_bytes={graph.name: graph.weight_bytes for graph in bundle.manifest.graphs},
            measured=measured.get(j),
            absent="" if j in measured else find_target(name).absent(),
            energy=_energy_words(energy.get(j)),
            graph_db=quality[bundle.folder][0],
            picture_db=quality[bundle.folder][1],
        )
        for j, (bundle, name) in enumerate(jobs)
    )
    return Results(
        format=FORMAT,
        version=VERSION,
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        commit=_commit(),
        rounds=request.rounds,
        entries=entries,
    )


def drawn_prompts(results: Results, bundles: Sequence[Path]) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """The prompts that were compared with diffusers, drawn by each bundle from the comparison's own latents.

    Args:
        results: with quality figures.
        bundles: folders, named as in the results.

    Returns:
        For each prompt: bundle, picture as a data URI (PNG), PSNR in dB.
    """
    quality = {entry.bundle: entry.picture_db for entry in results.entries}
    grid: dict[str, list[tuple[str, str, float]]] = {}
    for folder in bundles:
        pipeline = Pipeline(folder)
        for prompt, db in quality.get(folder.resolve().name, {}).items():
            picture = pipeline.manifest.picture
            size = (picture.height // picture.pixels_per_latent, picture.width // picture.pixels_per_latent)
            latents = np.random.default_rng(0).standard_normal((1, picture.latent_channels, *size), np.float32)
            out = io.BytesIO()
            Image.fromarray(to_8_bit(pipeline.generate(prompt, latents=latents)[0])).save(out, "png")
            source = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
            grid.setdefault(prompt, []).append((folder.resolve().name, source, db))
    return sorted(grid.items(), key=lambda item: min(db for _, _, db in item[1]))


def _targets(request: BenchRequest, bundle: Bundle) -> Sequence[str]:
    form = bundle.manifest.model_format
    fitting = [name for name in request.targets or DEFAULT if find_target(name).model_format == form]
    if not request.targets and form == "coreml" and find_target("coreml").absent():
        return ["evaluator"]
    if not fitting:
        raise InputError(
            "No target runs this bundle.", [Complaint(str(bundle.folder), "its format", form, ", ".join(request.targets))]
        )
    return fitting


def _run(request: BenchRequest, bundle: Bundle, target: Target) -> Measured:
    options = ["--runtime", target.runtime, "--provider", target.provider, "--runs", str(request.runs)]
    options += ["--warm-ups", str(request.warm_ups)]
    options += [] if request.threads is None else ["--threads", str(request.threads)]
    command = [sys.executable, "-m", "deploy.runner", str(bundle.folder.resolve()), *options]
    if request.remote is not None:  # the bundle lies there under the same name, and flash-deploy is installed
        there = ["python3", "-m", "deploy.runner", str(bundle.folder), *options]
        command = shlex.split(request.remote.replace("{command}", shlex.join(there)))
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise InputError("The measurement cannot be started.", [Complaint(command[0], error.strerror or str(error))]) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise InputError("A measurement failed.", [Complaint(f"{bundle.folder.name} on {target.runtime}", said[-1])])
    try:
        return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=Measured)
    except (msgspec.MsgspecError, IndexError) as error:
        raise InputError("A measurement gave no result.", [Complaint(shlex.join(command), str(error))]) from error


def _quality(request: BenchRequest, bundle: Bundle, tell: Callable[[str], None]) -> tuple[dict[str, float], dict[str, float]]:
    recorded = {graph.name: graph.parity_db for graph in bundle.manifest.graphs if graph.parity_db is not None}
    if request.student is None:
        return recorded, {}
    from deploy.verify import verify

    tell(f"comparing {bundle.folder.name} with diffusers")
    report = verify(bundle.folder, request.student)
    return {name: min(db, 999.0) for name, db in report.graph_db.items()}, {
        p: min(db, 999.0) for p, db in report.picture_db.items()
    }


def _energy_joules() -> float | None:
    """What the processor has used since some time, where the system says it."""
    try:
        return int(RAPL.read_text("ascii")) / 1e6
    except (OSError, ValueError):
        return None


def _energy_words(joules: list[float] | None) -> str:
    if joules:
        return f"{sorted(joules)[len(joules) // 2]:.1f} J for a whole measurement (RAPL package 0)"
    return f"not available: {'no RAPL counter that can be read' if sys.platform == 'linux' else 'needs powermetrics, as root'}"


def _commit() -> str:
    """Of the folder that this runs in, where it is a repository."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
