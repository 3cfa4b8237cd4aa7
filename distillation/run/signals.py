"""A run that is asked to stop finishes its step first."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

__all__ = ["Interrupted", "Stop", "stoppable"]


class Interrupted(Exception):  # noqa: N818  # as KeyboardInterrupt: no error
    """The run was asked to stop, and what it has is kept."""


class Stop:
    """Whether the run is asked to stop.

    Args:
        parent: the process that this one stops with, however that ends: nobody would be left to ask it. None where 0.
    """

    def __init__(self, parent: int = 0) -> None:
        self.told, self._parent = False, parent

    @property
    def asked(self) -> bool:
        """By a signal, or by the end of the parent."""
        return self.told or bool(self._parent and os.getppid() != self._parent)


@contextlib.contextmanager
def stoppable(parent: int = 0) -> Iterator[Stop]:
    """Take SIGINT (Ctrl-C) and SIGTERM as a wish to stop; a second Ctrl-C stops at once.

    Args:
        parent: the process that this one stops with; none where 0.

    Raises:
        KeyboardInterrupt: at the second.
    """
    stop = Stop(parent)
    if threading.current_thread() is not threading.main_thread():  # only there signals can be handled
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.told and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.told = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.stderr.flush()
