"""docs/api.md: its examples run, and it names what there is."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import flash_deploy
from deploy.bundle.folder import Bundle

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def blocks(text: str) -> list[str]:
    """The page's Python."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(examples: list[str]) -> doctest.TestResults:
    """One after another, as a reader would: names stay."""
    names: dict[str, Any] = {}
    runner = doctest.DocTestRunner()
    for i, block in enumerate(examples):
        test = doctest.DocTestParser().get_doctest(block, names, f"block {i + 1}", str(PAGE), 0)
        runner.run(test, clear_globs=False)
        names = test.globs
    return runner.summarize(verbose=False)


def test_the_examples_do_what_they_say(
    builtin_bundle: Bundle, upon_bundle: Bundle, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with two bundles of the built-in student, and a small student."""
    shutil.copytree(builtin_bundle.folder, tmp_path / "bundle")
    shutil.copytree(upon_bundle.folder, tmp_path / "bundle-upon")
    assert tiny_folder == tmp_path / "student"
    monkeypatch.chdir(tmp_path)
    examples = blocks(PAGE.read_text("utf-8"))
    assert len(examples) >= 7
    assert all(">>> " in example for example in examples)
    assert run(examples).failed == 0
    assert (tmp_path / "cross.png").is_file()


def test_an_example_that_is_wrong_would_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([">>> x = 1\n\n", ">>> x + 1\n3\n\n"]) == (1, 2)
    assert "Expected:\n    3\nGot:\n    2" in capsys.readouterr().out


def test_the_page_names_what_there_is() -> None:
    [table] = re.findall(r"^\| name \|.*?\n\n", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    cells = [line.split("|")[1] for line in table.splitlines()[2:] if line]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(flash_deploy.__all__)
