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
from typing import IO, TextIO

import torch

from distillation.run.order import Order
from distillation.run.processes import Processes
from distillation.run.records import Display
from distillation.run.signals import Interrupted, stoppable
from exporters.errors import Complaint, InputError
from exporters.quiet import quiet_libraries
from quantization.files import append_to, writing
from quantization.folders import remove_empty

__all__ = ["begin", "follow", "spread"]

INTERRUPTED = 130
GRACE_SECONDS = 2.0
"""For the others of a process that has failed: to say the same, or to notice."""
DESERTED = 70
"""Exit code of a process that ends because another has: that one says why."""
ENDED = (0, INTERRUPTED, DESERTED, -signal.SIGTERM, -signal.SIGKILL)
"""Exit codes of processes that have nothing to say."""
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says of another process that has ended (torch 2.13)."""


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
        return _wait([_start([*_words(prefix), *command], {}, None)])
    on_cpu = order.device == "cpu" or not (order.device or torch.cuda.is_available())
    count = min(recipe.processes, os.cpu_count() or 1) if on_cpu else 1
    if count == 1:
        return follow(order)
    return spread([sys.executable, *command], count)


def follow(order: Order) -> int:
    """Follow an order in this process, one of those that the environment tells of.

    Returns:
        The exit code: 0 done, 130 interrupted, 70 where another process has ended.

    Raises:
        InputError: what was given cannot be followed.
    """
    quiet_libraries()
    from distillation.run.outcome.taken_up import TakenUp
    from distillation.run.pipeline import Distillation

    recipe = order.read()
    processes = Processes.joined(order.device)
    if processes.count > 1 and processes.device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes.count))
    launched = os.getppid() if processes.count > 1 else 0
    with stoppable(launched) as stop, Display(processes.first) as display, _alone(order.out, processes):
        try:
            taken_up = None if order.take_up is None else TakenUp(order.take_up)
            run = Distillation(recipe, order.place, order.open_teacher(), order.out, processes, display, stop, taken_up)
            run.run(order.stop_after)
            display.line(
                f"{order.out}: all that {recipe.name} asks for is there" + f" up to {order.stop_after}" * bool(order.stop_after)
            )
        except Interrupted:
            display.line("interrupted: what is done is kept, and the same command goes on from there")
            return INTERRUPTED
        except RuntimeError as error:
            if processes.count > 1 and any(said in str(error) for said in GONE):
                return DESERTED
            raise
    return 0


@contextlib.contextmanager
def _alone(folder: Path, processes: Processes) -> Iterator[None]:
    """Let no other run into the folder meanwhile; the lock goes with the process, however it ends.

    A folder in which nothing came to be goes again.

    Raises:
        InputError: another run is in it.
        WritingError: it cannot be made.
    """
    if not processes.first:
        yield
        return
    new = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]  # innermost first
    lock = folder / ".lock"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stream = append_to(lock)
    with stream:
        if not _locked(stream, lock):
            raise InputError(
                "Another run is at work in this folder.",
                [Complaint(str(folder), "locked")],
                "wait for it, or give another folder",
            )
        try:
            yield
        finally:
            if new and [place.name for place in folder.iterdir()] == [lock.name]:
                lock.unlink()
                remove_empty(new)


def _locked(stream: TextIO, file: Path) -> bool:
    """Whether a file could be locked, and is still that file: its folder may have been removed by the run that had it."""
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except ImportError:  # Windows
        return True
    except OSError:
        return False


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
        if code not in (0, INTERRUPTED) and processes[0].returncode in ENDED:
            failed = [said for said, process in zip(quiet, processes[1:], strict=True) if process.returncode not in ENDED]
            for said in failed[:1]:  # what one has to say, others may say too
                said.seek(0)
                sys.stderr.write(said.read().decode("utf-8", "replace"))
    return code


def _words(prefix: str) -> list[str]:
    """A command line in its parts.

    Raises:
        InputError: it is none.
    """
    try:
        words = shlex.split(prefix)
    except ValueError as error:
        raise InputError("The launcher cannot be started.", [Complaint("--launch", str(error), got=prefix)]) from error
    if not words:
        raise InputError("The launcher cannot be started.", [Complaint("--launch", "is empty")])
    return words


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
        complaint = Complaint("--launch", error.strerror or str(error), "a program that is there", command[0])
        raise InputError("The launcher cannot be started.", [complaint]) from error


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all are done; a wish to stop is passed on, and where one fails the others are ended.

    They are given as long as a step and a checkpoint take, which only they know; a second Ctrl-C ends them.
    """
    passed_on = failed = False
    with stoppable() as stop:
        try:
            while any(process.poll() is None for process in processes):
                if stop.asked and not passed_on:
                    passed_on = True
                    _send(processes, signal.SIGTERM)
                if not failed and any(process.poll() not in (None, 0, INTERRUPTED) for process in processes):
                    failed = True
                    time.sleep(GRACE_SECONDS)
                    _send(processes, signal.SIGKILL)
                time.sleep(0.05)
        finally:  # a second Ctrl-C
            _send(processes, signal.SIGKILL)
    codes = [process.wait() for process in processes]
    if wrong := [code for code in codes if code not in ENDED]:
        return wrong[0]
    if stop.asked or INTERRUPTED in codes:
        return INTERRUPTED
    return next((code for code in codes if code), 0)


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
