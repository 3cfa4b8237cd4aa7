"""Processes of a run that begin with all that they import: forked from one that has done nothing else.

A process of its own takes seconds to import torch, diffusers and transformers; a dozen would take minutes.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from distillation import __main__
from distillation.run.order import Order
from distillation.run.records import Display

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.distillation.run.imported"])
LONGEST_S = 120


@dataclass(frozen=True)
class Told:
    """How processes ended, by rank: exit codes, and what they said."""

    codes: list[int | None]
    said: list[str]


def begin(
    order: Order, said: Path, rank: int = 0, count: int = 1, port: int = 0, asked_at: tuple[str, int] | None = None
) -> ForkServerProcess:
    """One process of a run, as ``python -m distillation`` is; it is asked to stop at the step of a stage that is given."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {name: str(value) for name, value in place.items()} if count > 1 else {}
    process = SERVER.Process(target=_main, args=(order.arguments(), environment, str(said), asked_at))
    process.start()
    return process


def together(order: Order, folder: Path, count: int = 2, asked_at: tuple[str, int] | None = None) -> Told:
    """Several processes, to their end; the last one alone is asked to stop."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [folder / f"said-{rank}" for rank in range(count)]
    processes = [
        begin(order, file, rank, count, port, asked_at if rank == count - 1 else None) for rank, file in enumerate(files)
    ]
    for process in processes:
        process.join(LONGEST_S)
        process.kill()
        process.join()
    return Told([process.exitcode for process in processes], [file.read_text() for file in files])


def asks_to_stop(name: str, done: int, number: int = signal.SIGTERM) -> Callable[..., None]:
    """A bar that sends this process a signal when something has come so far."""

    def bar(display: Display, at: str, count: int, total: int, record: dict[str, float] | None = None) -> None:
        if (at, count) == (name, done):
            os.kill(os.getpid(), number)

    return bar


def _main(arguments: list[str], environment: dict[str, str], said: str, asked_at: tuple[str, int] | None) -> None:
    if asked_at is not None:
        Display.bar = asks_to_stop(*asked_at)  # type: ignore[method-assign]
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", buffering=0), write_through=True)
    sys.argv = ["distillation", *arguments]
    __main__.main()
