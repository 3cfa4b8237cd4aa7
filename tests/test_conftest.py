"""What the suite says of itself."""

from __future__ import annotations

from types import SimpleNamespace

from tests.conftest import pytest_terminal_summary


def summary(*reasons: str) -> list[str]:
    lines: list[str] = []
    skipped = [SimpleNamespace(longrepr=("tests/test_x.py", 3, f"Skipped: {reason}")) for reason in reasons]
    pytest_terminal_summary(SimpleNamespace(stats={"skipped": skipped} if skipped else {}, write_line=lines.append))
    return lines


def test_skipped_tests_are_told_with_their_reasons() -> None:
    assert summary("no Node.js", "no Chromium", "no Node.js") == ["3 skipped", "  1: no Chromium", "  2: no Node.js"]


def test_that_none_was_skipped_is_told_too() -> None:
    assert summary() == ["0 skipped"]
