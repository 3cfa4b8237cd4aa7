"""A headless Chromium that is driven over a pipe, in its DevTools protocol (https://chromedevtools.github.io/devtools-protocol).

No driver and no package beside the browser itself.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Self

from deploy.errors import Complaint, InputError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SOFTWARE_WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
"""WebGPU without a GPU: for checks of operators and numbers; its times mean nothing."""
START_S = 60.0
CLOSE_S = 10.0
_FREE_DESCRIPTOR = 10  # above those that the protocol fixes: Chromium reads from 3 and writes to 4


class BrowserError(InputError):
    """The browser could not be started, or did not do what it was told."""


def find_chromium() -> str:
    """The browser's executable: the environment's ``CHROMIUM``, or the first of the usual names.

    Raises:
        BrowserError: there is none.
    """
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        if name and (found := shutil.which(name)):
            return found
    remedy = "install Chromium or Chrome, or let the variable CHROMIUM name its executable"
    raise BrowserError("No Chromium is installed.", [Complaint("PATH", "not found", " or ".join(NAMES))], remedy)


class Chromium:
    """A browser with one empty page.

    Args:
        arguments: more of Chromium's own arguments.

    Attributes:
        process: the browser's process id; its other processes are below it.
        events: what the page has done since it was opened, as the protocol tells it: requests, messages, exceptions.

    Raises:
        BrowserError: there is no Chromium, or it does not start.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        executable = find_chromium()
        self._profile = tempfile.TemporaryDirectory(prefix="flash-deploy-chromium-", ignore_cleanup_errors=True)
        fixed = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={self._profile.name}"]
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run its sandbox as root
        self.process, self._write, self._read = _start([executable, *fixed, *sandbox, *arguments, "about:blank"])
        self._count, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        try:
            target = self.call("Target.createTarget", START_S, url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, timeout_s: float = 30.0, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; what happens meanwhile goes to :attr:`events`.

        Raises:
            BrowserError: the browser refuses, is gone, or takes longer than ``timeout_s``.
        """
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        try:
            os.write(self._write, json.dumps(message).encode() + b"\0")
        except OSError as error:
            raise BrowserError("The browser is gone.", [Complaint(method, str(error))]) from error
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._receive(method, deadline)
            if answer.get("id") == self._count:
                break
            self.events.append(answer)
        if "error" in answer:
            raise BrowserError("The browser refuses a command.", [Complaint(method, answer["error"]["message"])])
        return dict(answer["result"])

    def open(self, url: str) -> None:
        """Open an address in the page; returns before it is loaded."""
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str, timeout_s: float = 30.0) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited.

        Raises:
            BrowserError: it throws, or takes longer than ``timeout_s``.
        """
        done = self.call("Runtime.evaluate", timeout_s, expression=expression, awaitPromise=True, returnByValue=True)
        if details := done.get("exceptionDetails"):
            text = details.get("exception", {}).get("description", details["text"])
            raise BrowserError("The page threw an error.", [Complaint("page", text.splitlines()[0])])
        return done["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 30.0) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            BrowserError: it is not after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise BrowserError("The page is not ready.", [Complaint("page", "still false", got=expression)])
            time.sleep(0.05)

    def screenshot(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End the browser and remove what it wrote."""
        with contextlib.suppress(BrowserError):
            self._session = ""
            self.call("Browser.close", CLOSE_S)
        if not _gone(self.process, CLOSE_S):
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def _receive(self, method: str, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BrowserError("The browser does not answer.", [Complaint(method, "no answer in time")])
            block = os.read(self._read, 1 << 20)
            if not block:
                raise BrowserError("The browser is gone.", [Complaint(method, "it has ended")])
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))


def _start(command: list[str]) -> tuple[int, int, int]:
    """Start the browser: its process, where it is written to and where it is read from."""
    (its_read, our_write), (our_read, its_write) = os.pipe(), os.pipe()
    its = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FREE_DESCRIPTOR) for descriptor in (its_read, its_write)]
    nothing = os.open(os.devnull, os.O_RDWR)
    actions = [
        (os.POSIX_SPAWN_DUP2, source, target)
        for source, target in [*((nothing, i) for i in range(3)), *zip(its, (3, 4), strict=True)]
    ]
    try:
        process = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    except OSError as error:
        complaint = Complaint(command[0], error.strerror or str(error))
        raise BrowserError("The browser cannot be started.", [complaint]) from error
    finally:
        for descriptor in (its_read, its_write, nothing, *its):
            os.close(descriptor)
    return process, our_write, our_read


def _gone(process: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.02)
    return False
