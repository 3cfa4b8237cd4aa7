"""Command lines in the documentation, taken apart: which commands and options they name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import lru_cache

import click
import typer.main

from deploy.cli.main import app

PROGRAM = "flash-deploy"


@lru_cache(maxsize=1)
def options() -> dict[str, set[str]]:
    """Every command's options; the empty name has the program's own."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group) or hasattr(root, "commands")
    by_command = {"": _options(root)}
    return by_command | {name: _options(command) for name, command in root.commands.items()}


def _options(command: click.Command) -> set[str]:
    context = click.Context(command)
    return {opt for parameter in command.get_params(context) for opt in (*parameter.opts, *parameter.secondary_opts)}


def command_lines(text: str) -> Iterator[list[str]]:
    """The commands of a shell script as words, without what joins them.

    >>> list(command_lines("a --b 'c d' && e -f \\\\\\n  g  # h\\n"))
    [['a', '--b', 'c d'], ['e', '-f', 'g']]
    """
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("();<>|&"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def complaint(words: list[str]) -> str:
    """What is wrong with a command of this project's; empty where nothing is, or it is another's.

    Args:
        words: of one command.
    """
    if not words or words[0] != PROGRAM or len(words) == 1:
        return ""
    by_command = options()
    name = words[1] if not words[1].startswith("-") else ""
    if name and name not in by_command:
        return f"{PROGRAM} has no command {name!r}" if re.fullmatch(r"[a-z-]+", name) else ""
    given = [word.split("=")[0] for word in words[1:] if re.match(r"-{1,2}[A-Za-z]", word)]
    missing = [option for option in given if option not in by_command[name]]
    return f"{PROGRAM} {name} has no {', '.join(missing)}" if missing else ""
