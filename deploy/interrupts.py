"""Ctrl-C stays Ctrl-C: extension modules turn a KeyboardInterrupt inside them into errors that show no trace of it.

And what must be done all the same, such as ending other processes, is not left in the middle.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn whatever error comes out of here after a Ctrl-C into a KeyboardInterrupt. Outside the main thread it does nothing.

    Raises:
        KeyboardInterrupt: the user has interrupted.
    """
    if threading.current_thread() is not threading.main_thread():  # only there Python runs signal handlers, and lets them be set
        yield
        return
    seen = threading.Event()

    def note(number: int, frame: object) -> None:
        seen.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if seen.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold a Ctrl-C back until the end of this. Outside the main thread, where none comes, it does nothing.

    Raises:
        KeyboardInterrupt: the user has interrupted meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)
