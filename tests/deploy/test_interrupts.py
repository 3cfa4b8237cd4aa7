import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import pytest

from deploy.interrupts import interruptible, uninterrupted


def swallow_ctrl_c() -> None:
    """What an extension module does: the interrupt inside it comes out as an error that knows nothing of it."""
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    raise RuntimeError("could not convert the operator")


def test_translated_interrupt_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        swallow_ctrl_c()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_plain_errors_and_interrupts_pass() -> None:
    with pytest.raises(RuntimeError, match="mine"), interruptible():
        raise RuntimeError("mine")
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), signal.SIGINT)


def test_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def handler() -> Iterator[Callable[[int, FrameType | None], Any]]:
    """Python's own handler, which is not there where a shell runs the suite in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_until_what_must_be_done_is_done(handler: Callable[[int, FrameType | None], Any]) -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("context", [interruptible, uninterrupted])
def test_other_threads_are_left_alone(context: Callable[[], AbstractContextManager[None]]) -> None:
    entered = []

    def work() -> None:
        with context():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]
