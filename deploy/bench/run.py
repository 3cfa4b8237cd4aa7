"""Measure bundles on targets, side by side: each in a fresh process, round after round, so that a busy moment hits all alike."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.extra import need
from benchmarks.quality.pictures import can_be_scored
from benchmarks.results.picture_grid import Pictures
from benchmarks.results.record import FORMAT, VERSION, Entry, Facts, Measured, Results
from deploy.bench.processes import Job, measure, prepare
from deploy.bench.quality import Judge, Judgement
from deploy.bench.request import BenchRequest
from deploy.bench.targets import BROWSER_DEFAULT, DEFAULT, Assignment, RunnerTarget, find_target
from deploy.bundle.folder import Bundle, open_bundle
from deploy.errors import Complaint, InputError
from deploy.page.page import INDEX
from exporters.reference.decibels import EQUAL_DB


@dataclass(frozen=True)
class Benchmark:
    """What was found, and what was drawn on the way: for each entry its pictures, and the student's."""

    results: Results
    pictures: tuple[Pictures, ...]


def bench(request: BenchRequest, tell: Callable[[str], None] | None = None) -> Benchmark:
    """Measure.

    Raises:
        InputError: a bundle, target or student cannot be used, a measurement fails, or a package is not installed.
    """
    need("psutil", "scipy")  # browsers' memory, and whether rows differ: said before hours of measuring
    tell = tell or (lambda text: None)
    bundles = [open_bundle(folder) for folder in request.bundles]
    _check_student(request, bundles)
    judge = None if request.student is None else Judge(request)
    with tempfile.TemporaryDirectory(prefix="flash-deploy-bench-") as work:
        jobs = _jobs(request, bundles, Path(work))
        there = [job for job in jobs if not job.absent]
        if not there:
            raise InputError("There is nothing to measure.", [Complaint(job.target_name, job.absent) for job in jobs])
        for job in there:
            if job.target.of_student:
                tell(f"preparing {job.target_name}")
                prepare(job)
        sizes = {job: _size_bytes(job) for job in there}
        measured: dict[Job, Measured] = {}
        for i in range(request.rounds):
            for job in there:
                tell(f"round {i + 1} of {request.rounds}: {job.subject} on {job.target_name}")
                one_round = measure(job, request.runs, request.warm_ups, request.remote)
                measured[job] = measured[job] + one_round if job in measured else one_round
        judged = {} if judge is None else {job: judge.judge(job, tell) for job in there}
        graph_db = {bundle.folder: _graph_db(request, bundle, tell) for bundle in bundles}
    results = Results(
        format=FORMAT,
        version=VERSION,
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        commit=_commit(),
        rounds=request.rounds,
        entries=tuple(_entry(job, request, measured, sizes, judged, graph_db) for job in jobs),
    )
    return Benchmark(results, tuple(judged[job].pictures for job in jobs if job in judged))


def _entry(
    job: Job,
    request: BenchRequest,
    measured: Mapping[Job, Measured],
    sizes: Mapping[Job, int],
    judged: Mapping[Job, Judgement],
    graph_db: Mapping[Path, dict[str, float]],
) -> Entry:
    manifest, of_student = job.bundle.manifest, job.target.of_student
    quality = judged[job].quality if job in judged else None
    fingerprint = hashlib.sha256((job.bundle.folder / "manifest.json").read_bytes()).hexdigest()
    return Entry(
        bundle=job.subject,
        fingerprint=manifest.student.fingerprint if of_student else fingerprint,
        target=job.target_name if request.remote is None else f"{job.target_name}, remote",
        bytes_on_disk=sizes.get(job, 0) if of_student else _size_bytes(job),
        graph_bytes={} if of_student else {graph.name: graph.weight_bytes for graph in manifest.graphs},
        facts=None if of_student else _facts(job.bundle),
        measured=measured.get(job),
        absent=job.absent,
        graph_db={} if of_student else graph_db[job.bundle.folder],
        quality=quality,
    )


def _jobs(request: BenchRequest, bundles: Sequence[Bundle], work: Path) -> list[Job]:
    """Every bundle on every target that runs it, and the student once for each kind of pictures that the bundles draw."""
    jobs: dict[tuple[str, str], Job] = {}
    kinds: list[str] = []
    for bundle, given in zip(bundles, request.bundles, strict=True):
        source = request.source(bundle.manifest.text.t5 == "kept")
        for name in _targets(request, bundle):
            target, subject = find_target(name), bundle.folder.name
            folder = str(bundle.folder.resolve()) if request.remote is None else str(given)
            assignment = Assignment(bundle, folder, source, work, request.threads)
            key = str(bundle.folder)
            if target.of_student:
                kind = msgspec.json.encode((bundle.manifest.sampling, bundle.manifest.picture, bundle.manifest.text.t5)).decode()
                kinds += [] if kind in kinds else [kind]
                assignment = Assignment(bundle, folder, source, work / str(kinds.index(kind)), request.threads)
                key = kind
                subject = bundle.manifest.student.name + (f" {kinds.index(kind) + 1}" if kinds.index(kind) else "")
            here = request.remote is None or target.remote
            absent = "is measured on this machine only" if not here else "" if request.remote else target.absent(assignment)
            jobs.setdefault((key, name), Job(subject, name, target, assignment, absent))
    return list(jobs.values())


def _targets(request: BenchRequest, bundle: Bundle) -> Sequence[str]:
    form = bundle.manifest.model_format
    page = any(record.path == INDEX for record in bundle.manifest.files)
    wanted = request.targets or (*DEFAULT, *(BROWSER_DEFAULT if page else ()))
    fitting = [name for name in wanted if find_target(name).fits(bundle)]
    coreml = RunnerTarget("coreml", "coreml")
    if not request.targets and form == "coreml" and coreml.absent():
        return ["coreml", "evaluator"]
    if not fitting:
        complaint = Complaint(str(bundle.folder), "its format", form, ", ".join(request.targets))
        raise InputError("No target runs this bundle.", [complaint])
    return fitting


def _check_student(request: BenchRequest, bundles: Sequence[Bundle]) -> None:
    """Refuse another student than the bundles', and scores of pictures that the scorer does not know."""
    if request.student is None:
        return
    from exporters.student.open import open_source

    complaints = []
    fingerprints: dict[bool, str] = {}
    for bundle in bundles:
        kept = bundle.manifest.text.t5 == "kept"
        if kept not in fingerprints:
            source = request.source(kept)
            assert source is not None
            student = open_source(source)
            absent = ", without text_encoder_3, whose weights are not there" if kept and not student.has_t5 else ""
            fingerprints[kept] = student.fingerprint() + absent
        if (made_of := bundle.manifest.student.fingerprint) != fingerprints[kept]:
            complaints.append(Complaint(str(bundle.folder), "was made of another student", fingerprints[kept], made_of))
        picture = bundle.manifest.picture
        if request.score and not can_be_scored(picture.height, picture.width):
            got = f"{picture.height} x {picture.width} pixels"
            complaints.append(Complaint("--score", "the scorer knows pictures of captioned worlds", "64 x 64 pixels", got))
    if complaints:
        raise InputError("The student cannot be compared with.", complaints)


def _size_bytes(job: Job) -> int:
    """Bytes of the bundle's files; a peer's own files where it made some, else the student's weights that it loads."""
    if not job.target.of_student:
        return sum(record.size_bytes for record in job.bundle.manifest.files)
    folder = job.prepared_folder()
    if own_bytes := sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()):
        return own_bytes
    from exporters.student.open import open_source

    assert job.assignment.student is not None
    return sum(file.stat().st_size for file in open_source(job.assignment.student).weight_files)


def _facts(bundle: Bundle) -> Facts:
    manifest = bundle.manifest
    return Facts(
        tier=manifest.tier,
        model_format=manifest.model_format,
        schemes=tuple(dict.fromkeys(rule.scheme for rule in manifest.profile)),
        height=manifest.picture.height,
        width=manifest.picture.width,
        steps=len(manifest.sampling.timesteps),
    )


def _graph_db(request: BenchRequest, bundle: Bundle, tell: Callable[[str], None]) -> dict[str, float]:
    """Each graph against diffusers in fp32: measured now with a student, else as the build measured it."""
    if request.student is None:
        return {graph.name: graph.parity_db for graph in bundle.manifest.graphs if graph.parity_db is not None}
    from deploy.build.verify import verify

    tell(f"comparing the graphs of {bundle.folder.name} with diffusers")
    report = verify(
        bundle.folder,
        request.student,
        request.variant,
        pictures=False,
        ignore_lora=request.ignore_lora,
        lora=request.lora,
        components=request.components,
    )
    return {name: min(db, EQUAL_DB) for name, db in report.graph_db.items()}


def _commit() -> str:
    """The commit of the checkout that this package lies in; empty where it was installed otherwise."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # a folder further up may be another project's
        return ""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
