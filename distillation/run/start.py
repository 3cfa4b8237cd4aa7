"""A run begins in this process, or in several that this one starts and ends."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from distillation.run.order import Order
from distillation.run.processes import Processes
from distillation.run.records import Display
from distillation.run.signals import Interrupted, stoppable
from exporters.errors import Complaint, InputError
from exporters.quiet import quiet_libraries
from quantization.files import append_to, writing

__all__ = ["begin", "follow", "spread"]

INTERRUPTED = 130
GRACE_SECONDS = 60.0
"""Until processes that were asked to stop are ended: a step and a checkpoint of theirs."""


def begin(order: Order, prefix: str = "") -> int:
    """Follow an order, in as many processes as its recipe wants, or under a launcher.

    Args:
        order: the run.
        prefix: a launcher's command line, for example ``torchrun --nproc-per-node 8``.

    Returns:
        The exit code: 0 done, 130 interrupted; what a launcher says where it says something else.

    Raises:
        InputError: what was given cannot be followed.
    """
    recipe = order.read()
    command = ["-m", "distillation", *order.arguments()]
    if prefix:
        return _wait([_start([*shlex.split(prefix), *command], {}, None)])
    on_cpu = order.device == "cpu" or not (order.device or torch.cuda.is_available())
    count = min(recipe.processes, os.cpu_count() or 1) if on_cpu else 1
    if count == 1:
        return follow(order)
    return spread([sys.executable, *command], count)


def follow(order: Order) -> int:
    """Follow an order in this process, one of those that the environment tells of.

    Raises:
        InputError: what was given cannot be followed.
    """
    quiet_libraries()
    from distillation.run.pipeline import Distillation
    from exporters.student.open import open_student

    recipe = order.read()
    processes = Processes.joined(order.device)
    if processes.count > 1 and processes.device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes.count))
    code = 0
    with stoppable() as stop, Display(processes.first) as display, _alone(order.out, processes):
        base = None if order.teacher is None else open_student(order.teacher)
        try:
            run = Distillation(recipe, order.place, base, order.out, processes, display, stop)
            run.run(order.stop_after)
        except Interrupted:
            display.line("interrupted: what is done is kept, and the same command goes on from there")
            code = INTERRUPTED
    return code


@contextlib.contextmanager
def _alone(folder: Path, processes: Processes) -> Iterator[None]:
    """Let no other run into the folder meanwhile; the lock goes with the process, however it ends.

    Raises:
        InputError: another run is in it.
        WritingError: it cannot be made.
    """
    if not processes.first:
        yield
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stream = append_to(folder / ".lock")
    with stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError as error:
            raise InputError(
                "Another run is at work in this folder.",
                [Complaint(str(folder), "locked")],
                "wait for it, or give another folder",
            ) from error
        yield


def spread(command: Sequence[str], count: int) -> int:
    """Start a command as several processes that know of one another, and wait for them.

    The first tells what all have to tell; what another says is told where that one alone fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        quiet = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1)]
        processes = []
        for rank, said in enumerate([None, *quiet]):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"}
            processes.append(_start(command, environment, said))
        code = _wait(processes)
        if code not in (0, INTERRUPTED) and processes[0].returncode in (0, -signal.SIGTERM, -signal.SIGKILL):
            for said in quiet:  # the first was ended because another had failed
                said.seek(0)
                sys.stderr.write(said.read().decode("utf-8", "replace"))
    return code


def _start(command: Sequence[str], environment: dict[str, str], said: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """A process in a session of its own: what a terminal sends to all, it gets from here, once.

    Raises:
        InputError: there is no such program.
    """
    try:
        return subprocess.Popen(  # noqa: S603  # the user's own launcher
            list(command), env=os.environ | environment, stdout=said, stderr=said, start_new_session=True
        )
    except OSError as error:
        raise InputError(f"{command[0]} cannot be started.", [Complaint("--launch", error.strerror or str(error))]) from error


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all are done; a wish to stop is passed on, and where one fails the others are ended."""
    asked_at, failed = 0.0, False
    with stoppable() as stop:
        try:
            while any(process.poll() is None for process in processes):
                if stop.asked and not asked_at:
                    asked_at = time.monotonic()
                    _send(processes, signal.SIGTERM)
                if not failed and any(process.poll() not in (None, 0, INTERRUPTED) for process in processes):
                    failed, asked_at = True, asked_at or time.monotonic()
                    time.sleep(1.0)  # others may be about to say the same
                    _send(processes, signal.SIGKILL)
                time.sleep(0.05)
        finally:  # a second Ctrl-C
            _send(processes, signal.SIGKILL)
    codes = [process.wait() for process in processes]
    wrong = [code for code in codes if code not in (0, INTERRUPTED, -signal.SIGKILL)]
    if stop.asked or INTERRUPTED in codes:
        return INTERRUPTED
    return (wrong or codes)[0] if any(codes) else 0


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
