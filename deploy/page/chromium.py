"""A headless Chromium, driven by Playwright (https://playwright.dev/python): the one that is installed, none is downloaded."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Self, TypeVar

from benchmarks.extra import need
from deploy.errors import Complaint, InputError
from deploy.interrupts import uninterrupted

if TYPE_CHECKING:
    import psutil
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SOFTWARE_WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
"""WebGPU without a GPU: for checks of operators and numbers; its times mean nothing."""
START_S = 60.0
IDLE_S = 0.5
CLOSE_S = 10.0
END_S = 1.0
LISTEN_S = 0.5  # between looks for a Ctrl-C
POLL_S = 0.05
LINES_SHOWN = 5

T = TypeVar("T")


class BrowserError(InputError):
    """The browser could not be started, or did not do what it was told."""


def find_chromium() -> str:
    """The browser's executable: the environment's ``CHROMIUM``, or the first of the usual names.

    Raises:
        BrowserError: there is none.
    """
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        if name and (executable := shutil.which(name)):
            return executable
    remedy = "install Chromium or Chrome, or let the variable CHROMIUM name its executable"
    raise BrowserError("No Chromium is installed.", [Complaint("PATH", "not found", " or ".join(NAMES))], remedy)


class Chromium:
    """A browser with one page and a profile of its own.

    Playwright works in a thread of its own. So each call can be given up after a time (``Page.evaluate`` itself waits for ever),
    Ctrl-C stops the waiting and not Playwright in the middle of something, several browsers may be open, and an event loop may
    run already, as in notebooks.

    Args:
        arguments: more of Chromium's own arguments.

    Attributes:
        process: the browser's process id; its other processes are below it.
        version: the browser's.
        requests: addresses that the page and its workers have asked for since the browser was started.
        messages: what they have said on the console, and errors that nothing caught.

    Raises:
        BrowserError: there is no Chromium, or it does not start.
        InputError: Playwright or psutil is not installed.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        need("playwright", "psutil")
        from playwright.sync_api import Error

        executable = find_chromium()
        self.requests: list[str] = []
        self.messages: list[str] = []
        self._profile = tempfile.TemporaryDirectory(prefix="flash-deploy-chromium-", ignore_cleanup_errors=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chromium")
        self._exits = contextlib.ExitStack()  # entered and closed in that thread
        self._failure = Error
        self._started_processes: list[psutil.Process] = []
        try:
            self._page, self.version = self._result(lambda: self._launch(executable, arguments), executable, START_S)
            self._started_processes = self._started(executable)
            self.process = self._started_processes[0].pid
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def on_page(self, act: Callable[[Page], T], timeout_s: float = 30.0) -> T:
        """What Playwright makes of the page.

        Raises:
            BrowserError: it fails, or takes longer than ``timeout_s``; then the browser can only be closed.
        """
        return self._result(lambda: act(self._page), "page", timeout_s)

    def open(self, url: str) -> None:
        """Open an address in the page; returns before it is loaded.

        Raises:
            BrowserError: nobody answers there.
        """
        self.on_page(lambda page: page.goto(url, wait_until="commit"))

    def evaluate(self, expression: str, timeout_s: float = 30.0) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited.

        Raises:
            BrowserError: it throws, or takes longer than ``timeout_s``.
        """
        return self.on_page(lambda page: page.evaluate(expression), timeout_s)

    def wait_for(self, expression: str, timeout_s: float = 30.0) -> None:
        """Wait until a JavaScript expression is true.

        Asked again and again from here: pages whose policy forbids ``eval`` cannot do it themselves (``wait_for_function``).

        Raises:
            BrowserError: it is not after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                said = [Complaint("console", message) for message in self.messages]
                raise BrowserError("The page is not ready.", [Complaint("page", "still false", got=expression), *said])
            time.sleep(POLL_S)

    def close(self) -> None:
        """End the browser, whatever it is doing, and remove what it wrote; a Ctrl-C waits until that is done."""
        with uninterrupted():
            if not self._is_idle():
                self._end()  # what it is doing fails, and Playwright can close
            try:
                with contextlib.suppress(Exception):  # whatever Playwright says where browser or driver are gone, or do not go
                    self._thread.submit(self._exits.close).result(CLOSE_S)
            finally:
                self._end()
                self._thread.shutdown(wait=False, cancel_futures=True)
                self._profile.cleanup()

    def _is_idle(self) -> bool:
        """Whether Playwright's thread takes something else at once.

        It is asked, and what it was given is not noted: a Ctrl-C may come between the two.
        """
        try:
            self._thread.submit(lambda: None).result(IDLE_S)
        except TimeoutError:
            return False
        return True

    def _launch(self, executable: str, arguments: Sequence[str]) -> tuple[Page, str]:
        """In Playwright's thread: the empty page, and the browser's version."""
        from playwright.sync_api import sync_playwright

        chromium = self._exits.enter_context(sync_playwright()).chromium
        try:
            context = chromium.launch_persistent_context(  # other contexts keep what they store in memory
                self._profile.name,
                executable_path=executable,
                args=list(arguments),
                chromium_sandbox=getattr(os, "geteuid", lambda: 1)() != 0,  # Chromium refuses to run its sandbox as root
                no_viewport=True,
                timeout=1000 * START_S,
            )
        except self._failure as error:
            complaints = [Complaint(executable, line) for line in (_gist(error.message), *_written(error.message))]
            raise BrowserError("The browser cannot be started.", complaints) from error
        self._exits.callback(context.close)
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        context.on("weberror", lambda event: self.messages.append(f"uncaught: {event.error.message}"))
        assert context.browser is not None
        return context.pages[0], context.browser.version

    def _result(self, act: Callable[[], T], where: str, timeout_s: float) -> T:
        """What is done in Playwright's thread.

        Raises:
            BrowserError: it fails, or takes longer than ``timeout_s``.
        """
        future = self._thread.submit(act)
        try:
            # Piece by piece: Python handles a signal that comes just before it begins to wait only when that wait is over.
            while timeout_s > LISTEN_S and not future.done():
                wait([future], LISTEN_S)
                timeout_s -= LISTEN_S
            return future.result(timeout_s)
        except TimeoutError as error:
            raise BrowserError("The browser does not answer.", [Complaint(where, f"no answer in {timeout_s:g} s")]) from error
        except self._failure as error:
            raise BrowserError("The browser fails.", [Complaint(where, _gist(error.message))]) from error

    def _started(self, executable: str) -> list[psutil.Process]:
        """As :meth:`_processes` says, of a browser that has just been started.

        Raises:
            BrowserError: there are none.
        """
        if not (processes := self._processes()):
            raise BrowserError("The browser cannot be measured.", [Complaint(executable, "its process is not found")])
        return processes

    def _processes(self) -> list[psutil.Process]:
        """The browser and those below it: Playwright tells no process ids, but this browser's profile is its own."""
        import psutil

        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                if any(self._profile.name in argument for argument in process.cmdline()):
                    return [process, *process.children(recursive=True)]
        return []

    def _end(self) -> None:
        """End every process that is left of the browser."""
        import psutil

        ended = []
        for process in {*self._processes(), *self._started_processes}:
            with contextlib.suppress(psutil.Error):  # it has ended by itself
                if process.status() != psutil.STATUS_ZOMBIE:
                    process.kill()
                    ended.append(process)
        psutil.wait_procs(ended, END_S)  # before what they write to is removed


def _gist(message: str) -> str:
    r"""The first of Playwright's lines, without the call that is named before it.

    >>> _gist("Page.evaluate: Error: no such picture\n    at draw (app.js:3)")
    'Error: no such picture'
    """
    return re.sub(r"^\w+\.\w+: ", "", message).partition("\n")[0]


def _written(message: str) -> list[str]:
    r"""The last lines that the browser wrote on stderr, among Playwright's.

    >>> _written("BrowserType.launch: closed\nBrowser logs:\n[pid=7][err] libnss3.so: cannot open\n<gracefully close end>")
    ['libnss3.so: cannot open']
    """
    return re.findall(r"^\[pid=\d+\]\[err\] (.+)", message, re.MULTILINE)[-LINES_SHOWN:]
