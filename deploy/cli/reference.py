"""The README's command-line section, made from the commands' own ``--help``.

``python -m deploy.cli.reference`` writes it; a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path

from quantization.files import write_text

START, END = "<!-- cli: made by python -m deploy.cli.reference -->", "<!-- cli end -->"
WIDTH = 120


def cli_reference() -> str:
    """Every command's help as Markdown."""
    import click
    import typer.main

    from deploy.cli.main import app

    root = typer.main.get_command(app)
    sections = []
    context = click.Context(root, info_name="flash-deploy", terminal_width=WIDTH, max_content_width=WIDTH)  # type: ignore[arg-type]
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = click.Context(command, info_name=name, parent=context, terminal_width=WIDTH, max_content_width=WIDTH)
        sections.append(f"### `flash-deploy {name}`\n\n```text\n{command.get_help(inner).rstrip()}\n```")
    return "\n\n".join(sections)


def with_reference(readme: str, reference: str) -> str:
    """The README with its section replaced."""
    return re.sub(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: f"{START}\n\n{reference}\n\n{END}", readme, flags=re.DOTALL)


def main() -> None:
    """Rewrite the README in the current folder."""
    readme = Path("README.md")
    write_text(readme, with_reference(readme.read_text("utf-8"), cli_reference()))


if __name__ == "__main__":
    main()
