"""The processes that a benchmark starts, here or on a device elsewhere, and what they say."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.quality.drawing import Drawn, Wanted, from_line, wanted_lines
from benchmarks.results.record import Measured
from deploy.bench.targets import Assignment, BenchTarget, PeerTarget
from deploy.bundle.folder import Bundle
from deploy.errors import Complaint, InputError


@dataclass(frozen=True, eq=False)
class Job:
    """One row of a benchmark.

    Attributes:
        subject: the bundle's or the student's name.
        target_name: of the target.
        target: where it runs.
        assignment: what runs there.
        absent: why it cannot.
    """

    subject: str
    target_name: str
    target: BenchTarget
    assignment: Assignment
    absent: str

    @property
    def bundle(self) -> Bundle:
        """Whose pictures are drawn."""
        return self.assignment.bundle

    def prepared_folder(self) -> Path:
        """Where a peer has put its files."""
        return self.assignment.work / self.target_name


def prepare(job: Job) -> None:
    """Let a peer write the files that it needs, if it does, in a process of its own.

    Raises:
        InputError: it fails.
    """
    from benchmarks.peers.registry import PEERS

    assert isinstance(job.target, PeerTarget)
    if PEERS[job.target.peer].has_files:
        job.prepared_folder().mkdir(parents=True, exist_ok=True)
        _run(job, ["--prepare"], None)


def measure(job: Job, runs: int, warm_ups: int, remote: str | None) -> Measured:
    """One round.

    Raises:
        InputError: it fails, or says something else.
    """
    said = _run(job, ["--runs", str(runs), "--warm-ups", str(warm_ups)], remote)
    try:
        return msgspec.json.decode(said[-1], type=Measured)
    except (msgspec.MsgspecError, IndexError) as error:
        where = f"{job.subject} on {job.target_name}"
        raise InputError("A measurement gave no result.", [Complaint(where, str(error))]) from error


def draw(job: Job, wanted: Sequence[Wanted], remote: str | None) -> list[Drawn]:
    """Pictures, drawn by the target.

    Raises:
        InputError: it fails, or says something else.
    """
    where = f"{job.subject} on {job.target_name}"
    lines = _run(job, ["--draw"], remote, wanted_lines(wanted))
    return [from_line(line, where) for line in lines if line.startswith("{")]


def _run(job: Job, options: Sequence[str], remote: str | None, given: str = "") -> list[str]:
    """What a process says, as lines."""
    arguments = [*job.target.arguments(job.assignment), *options]
    command = [sys.executable, *arguments]
    if remote is not None:  # the bundle lies there under the same name, and flash-deploy is installed
        command = shlex.split(remote.replace("{command}", shlex.join(["python3", *arguments])))
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise InputError("The measurement cannot be started.", [Complaint(command[0], error.strerror or str(error))]) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise InputError("A measurement failed.", [Complaint(f"{job.subject} on {job.target_name}", said[-1])])
    return done.stdout.strip().splitlines()
