"""A run that is asked to stop finishes its step first."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

__all__ = ["Interrupted", "Stop", "stoppable"]


class Interrupted(Exception):  # noqa: N818  # as KeyboardInterrupt: no error
    """The run was asked to stop, and what it has is kept."""


class Stop:
    """Whether the run is asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Between two pieces of work that are kept.

        Raises:
            Interrupted: the run was asked to stop.
        """
        if self.asked:
            raise Interrupted


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Take SIGINT (Ctrl-C) and SIGTERM as a wish to stop; a second Ctrl-C stops at once.

    Raises:
        KeyboardInterrupt: at the second.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only there signals can be handled
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.stderr.flush()
