"""Ctrl-C stays Ctrl-C: extension modules turn a KeyboardInterrupt inside them into errors that show no trace of it."""

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
