"""The browser itself: what is said where it fails, and that nothing of it is left whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy.errors import InputError
from deploy.page.chromium import BrowserError, Chromium, find_chromium

INTERRUPTED = """
import signal, sys, tempfile
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the suite in the background
tempfile.tempdir = sys.argv[1]  # not TMPDIR: Chromium makes a socket there, whose address has at most 107 characters
from deploy.page.chromium import Chromium
with Chromium() as chromium:
    print(chromium.process, flush=True)
    chromium.evaluate("new Promise(() => {})", 600)
"""


@pytest.fixture(autouse=True)
def chromium() -> None:
    try:
        find_chromium()
    except BrowserError as error:
        pytest.skip(error.headline)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where profiles are made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def profiles(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("flash-deploy-chromium-*")]


def ended(process: int) -> bool:
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


def test_what_a_page_says_is_seen(temporary: Path) -> None:
    with Chromium() as browser:
        assert len(profiles(temporary)) == 1
        assert browser.evaluate("Promise.resolve([1, 'two', null])") == [1, "two", None]
        with pytest.raises(BrowserError, match=r"page: Error: no: such thing$"):
            browser.evaluate("(async () => { throw new Error('no: such thing\\n'); })()")
        browser.evaluate("console.warn('careful')")
        browser.evaluate("new Promise((done) => setTimeout(() => { setTimeout(done); throw new Error('uncaught one'); }))")
        with pytest.raises(BrowserError, match=r"(?s)still false \(got window.later\).*console: warning: careful"):
            browser.wait_for("window.later", 0)
        browser.wait_for("true")
        assert browser.messages == ["warning: careful", "uncaught: uncaught one"]
    assert ended(browser.process)
    assert profiles(temporary) == []


@pytest.mark.parametrize("script", ["new Promise(() => {})", "(() => { while (true); })()"], ids=["waiting", "busy"])
def test_a_page_that_does_not_answer_is_given_up(script: str, temporary: Path) -> None:
    with Chromium() as browser, pytest.raises(BrowserError, match=r"does not answer.\n  - page: no answer in 0.2 s"):
        browser.evaluate(script, 0.2)
    assert ended(browser.process)
    assert profiles(temporary) == []


def test_a_browser_that_dies_is_an_error() -> None:
    with Chromium() as browser:
        psutil.Process(browser.process).kill()
        with pytest.raises(BrowserError, match="The browser fails"):
            browser.evaluate("new Promise(() => {})")


def test_nobody_answers() -> None:
    with Chromium() as browser, pytest.raises(BrowserError, match="page: net::ERR"):
        browser.open("http://127.0.0.1:1/")


def test_two_browsers_where_an_event_loop_runs() -> None:
    async def both() -> list[int]:
        with Chromium() as one, Chromium() as other:
            assert one.process != other.process
            return [one.evaluate("1"), other.evaluate("2"), one.evaluate("3")]

    assert asyncio.run(both()) == [1, 2, 3]


def test_an_executable_that_is_no_browser(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, which does not know Chromium's options and says so."""
    monkeypatch.setenv("CHROMIUM", sys.executable)
    with pytest.raises(BrowserError, match=r"(?s)cannot be started.*nknown option"):
        Chromium()
    assert profiles(temporary) == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("all_of_them", [False, True], ids=["one process", "as a terminal does"])
def test_an_interrupt_leaves_nothing(all_of_them: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        browser = int(process.stdout.readline())
        (os.killpg if all_of_them else os.kill)(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said
    assert ended(browser)
    assert profiles(tmp_path) == []


def test_without_playwright_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.extra.find_spec", lambda name: None if name == "playwright" else object())
    with pytest.raises(InputError, match=r"not installed: playwright.\nWhat to do: pip install 'flash-deploy\[bench\]'"):
        Chromium()
