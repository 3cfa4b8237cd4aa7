import contextlib
import os
import signal
import threading

import pytest

from deploy.interrupts import interruptible


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


def test_other_threads_are_left_alone() -> None:
    entered = []

    def work() -> None:
        with interruptible():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]
