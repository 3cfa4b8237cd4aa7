"""Every message that docs/troubleshooting.md quotes is one that the source has."""

from __future__ import annotations

import ast
import re
from functools import lru_cache

import pytest

from tests.docs.pages import PACKAGES, ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
SHORTEST = 7
"""Characters of a piece that is looked up: shorter ones ("." after a name) say nothing."""


@lru_cache(maxsize=1)
def texts() -> tuple[str, ...]:
    """What can be said: the strings of the packages' Python, f-strings in pieces; their JavaScript's and the Makefile's text."""
    packages = [ROOT / name for name in PACKAGES if name != "tests"]
    said = [(ROOT / "Makefile").read_text("utf-8")]
    said += [file.read_text("utf-8") for package in packages for file in package.rglob("*.js")]
    for file in (file for package in packages for file in package.rglob("*.py")):
        said += strings(file.read_text("utf-8"))
    return tuple(said)


def strings(source: str) -> list[str]:
    """The strings of a module but its docstrings."""
    tree = ast.parse(source)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in bare]
    return [node.value for node in nodes if isinstance(node.value, str)]


def quoted(page: str) -> list[str]:
    """The messages of a page: code in the first column of its tables, but for what is seen elsewhere."""
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| message")]
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def missing(message: str) -> list[str]:
    """The pieces of a message that nothing says.

    A place before a colon (``text_encoder_3: cannot be kept``) is a piece of its own.
    """
    pieces = [piece.strip(" ,:") for part in message.split("…") for piece in part.split(": ")]
    return [piece for piece in pieces if len(piece) >= SHORTEST and not any(piece in text for text in texts())]


NOT_OURS = ("nvidia-…", "--runtime coreml", "bench")


@pytest.mark.parametrize("message", [m for m in quoted(PAGE.read_text("utf-8")) if m not in NOT_OURS])
def test_quoted_message_is_in_the_source(message: str) -> None:
    assert any(len(piece) >= SHORTEST for piece in message.split("…")), "says too little to be looked up"
    assert not missing(message)


def test_a_message_that_nothing_says_is_noticed() -> None:
    assert missing("The bundle exceeds the patience of the tier …") == ["The bundle exceeds the patience of the tier"]
    assert missing("… is a web page, not the file itself") == []


def test_docstrings_are_no_messages() -> None:
    assert strings('"""Said to readers."""\nx = f"a {1} b" "c"\n') == ["a ", " bc"]


def test_every_row_of_the_page_is_read() -> None:
    assert len(quoted(PAGE.read_text("utf-8"))) > 80
