"""What the documentation names is there: marks, links, commands and their options, modules, paths and targets of make."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest

from tests.docs.commands import command_lines, complaint, options
from tests.docs.pages import MARKS, PACKAGES, ROOT, Page, Span, anchor, pages, parse

LANGUAGES = {"sh", "python", "js", "swift", "kotlin", "json", "toml", "text"}
PAGES = {str(page.path.relative_to(ROOT)): page for page in pages()}
each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def block_complaints(page: Page) -> list[str]:
    complaints = [f"{b.line}: no language" if not b.language else "" for b in page.blocks]
    complaints += [f"{b.line}: unknown language {b.language}" for b in page.blocks if b.language and b.language not in LANGUAGES]
    complaints += [f"{b.line}: unknown mark {b.needs!r}" for b in page.blocks if b.needs and b.needs not in MARKS]
    # A comment that is no mark right before a block: misspelt, or a line too far up.
    marks = [number for number, line in page.prose if "needs:" in line and "<!--" in line]
    complaints += [f"{number}: a mark before no block" for number in marks if number + 1 not in {b.line for b in page.blocks}]
    return [text for text in complaints if text]


@each_page
def test_blocks_have_languages_and_known_marks(page: Page) -> None:
    assert block_complaints(page) == []


def test_bad_blocks_are_noticed() -> None:
    text = "```\na\n```\n<!-- needs: a pony -->\n```sh\nb\n```\n<!-- needs: a GPU -->\n\n```pyhton\nc\n```\n"
    assert block_complaints(parse(ROOT / "x.md", text)) == [
        "1: no language",
        "10: unknown language pyhton",
        "5: unknown mark 'a pony'",
        "8: a mark before no block",
    ]


def command_complaints(page: Page) -> list[str]:
    """Commands and options that do not exist: in shell blocks, and in code in the text (``build --force`` is one too)."""
    complaints = []
    for block in page.blocks:
        if block.language == "sh":
            complaints += [f"{block.line}: {wrong}" for words in command_lines(block.text) if (wrong := complaint(words))]
    for span in page.code:
        if is_command(span.text):
            [words] = command_lines(span.text.removeprefix("flash-deploy "))
            complaints += [f"{span.line}: {wrong}"] if (wrong := complaint(["flash-deploy", *words])) else []
        elif span.text.startswith("--"):
            names = re.findall(r"(?:^| )(--[a-z][a-z0-9-]*)", span.text)
            complaints += [f"{span.line}: nothing has an option {name}" for name in names if not is_option(name)]
    return complaints


def is_command(text: str) -> bool:
    """Whether code in the text is a command line, whole or from the command's name on."""
    return text.startswith("flash-deploy ") or (" " in text and text.split(maxsplit=1)[0] in options())


def is_option(name: str) -> bool:
    """Whether a command has it, or a tool of this project (``python -m ...``) or one that is named beside it."""
    return any(name in of_command for of_command in options().values()) or name in tool_options()


@lru_cache(maxsize=1)
def tool_options() -> set[str]:
    """Options that modules take with argparse, and those of hf that the pages tell of."""
    sources = [file.read_text("utf-8") for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return {option for text in sources for option in re.findall(r"add_argument\([^)]*\"(--[a-z-]+)\"", text)} | {"--include"}


@each_page
def test_commands_and_options_exist(page: Page) -> None:
    assert command_complaints(page) == []


def test_commands_that_do_not_exist_are_noticed() -> None:
    text = "`build --no-such` and `--nowhere x`, `flash-deploy make`.\n\n"
    text += "```sh\nflash-deploy tiers && flash-deploy verify b --sede 1\n```\n"
    assert command_complaints(parse(ROOT / "x.md", text)) == [
        "3: flash-deploy verify has no --sede",
        "1: flash-deploy build has no --no-such",
        "1: nothing has an option --nowhere",
        "1: flash-deploy has no command 'make'",
    ]


def link_complaints(page: Page) -> list[str]:
    complaints = []
    anchors = {other.path: other.anchors for other in pages()}
    for link in page.links:
        target, _, name = link.text.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.path.parent / target).resolve() if target else page.path
        if target and not file.exists():
            complaints.append(f"{link.line}: {link.text} leads nowhere")
        elif name and name not in (page.anchors if file == page.path else anchors.get(file, set())):
            complaints.append(f"{link.line}: {link.text} is no heading")
    return complaints


@each_page
def test_links_resolve(page: Page) -> None:
    assert link_complaints(page) == []


def test_broken_links_are_noticed() -> None:
    text = "# A b\n[a](#a-b) [b](nowhere.md) [c](README.md#no-such) [d](https://example.com/x) ![e](docs/none.png)\n"
    assert link_complaints(parse(ROOT / "x.md", text)) == [
        "2: nowhere.md leads nowhere",
        "2: README.md#no-such is no heading",
        "2: docs/none.png leads nowhere",
    ]


def name_complaints(page: Page) -> list[str]:
    """Modules, files and targets of make that do not exist."""
    complaints = []
    spans = page.code
    spans += [Span(line, block.line) for block in page.blocks if block.language == "sh" for line in block.text.splitlines()]
    for span in spans:
        modules = re.findall(r"python3? -m ([\w.]+)", span.text)
        complaints += [
            f"{span.line}: no module {name}" for name in modules if name.split(".")[0] in PACKAGES and not module_file(name)
        ]
        if re.fullmatch(rf"({'|'.join(PACKAGES)}|docs)/[\w./*-]+", span.text) and not list(ROOT.glob(span.text)):
            complaints.append(f"{span.line}: no {span.text}")
        if re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+", span.text) and not is_name(span.text):
            complaints.append(f"{span.line}: nothing is called {span.text}")
        complaints += [
            f"{span.line}: no target {name}" for name in re.findall(r"^make ([a-z-]+)", span.text) if name not in targets()
        ]
    return complaints


def module_file(name: str) -> Path | None:
    place = ROOT.joinpath(*name.split("."))
    return next(
        (file for file in (place.with_suffix(".py"), place / "__main__.py", place / "__init__.py") if file.is_file()), None
    )


def is_name(text: str) -> bool:
    """Whether a dotted name is a module, or something that a module has."""
    if module_file(text):
        return True
    module, _, name = text.rpartition(".")
    file = module_file(module) if module else None
    return file is not None and bool(re.search(rf"^(class|def) {name}\b|^{name}\b.*=", file.read_text("utf-8"), re.MULTILINE))


@lru_cache(maxsize=1)
def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@each_page
def test_modules_paths_and_targets_exist(page: Page) -> None:
    assert name_complaints(page) == []


def test_names_that_do_not_exist_are_noticed() -> None:
    text = (
        "`python -m benchmarks.nothing X` `deploy/none.py` `deploy.cli.main.noon` `deploy.cli.main.app` `make tea` `make help`\n"
    )
    assert name_complaints(parse(ROOT / "x.md", text)) == [
        "1: no module benchmarks.nothing",
        "1: no deploy/none.py",
        "1: nothing is called deploy.cli.main.noon",
        "1: no target tea",
    ]


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text("utf-8").count("\n") <= 130


def test_anchors_are_githubs() -> None:
    assert anchor("`flash-deploy web-runtime`") == "flash-deploy-web-runtime"
    assert anchor(" In a browser") == "in-a-browser"
