"""The processes that a benchmark starts, here or on a device elsewhere, and what they say."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
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

TERMINAL_S = 0.5
"""How long after a Ctrl-C a process is taken to have had it from the terminal: a second one must not meet its first steps."""
END_S = 20.0
"""How long an interrupted process may take to end what it has started itself; a browser that hangs is closed in 13 s."""


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
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)  # noqa: S603
    except OSError as error:
        raise InputError("The measurement cannot be started.", [Complaint(command[0], error.strerror or str(error))]) from error
    with process:
        try:
            out, errors = process.communicate(given)
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        said = (errors.strip() or out.strip() or f"exit code {process.returncode}").splitlines()
        raise InputError("A measurement failed.", [Complaint(f"{job.subject} on {job.target_name}", said[-1])])
    return out.strip().splitlines()


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupt a process and wait until it has cleaned up: a browser's profile is its own to remove."""
    try:
        if os.name == "posix":  # a terminal has interrupted it already, whoever sends a signal to this process alone has not
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TERMINAL_S)
            process.send_signal(signal.SIGINT)  # nothing where it has ended; held back where it cleans up
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    finally:
        process.kill()  # nothing where it has ended
