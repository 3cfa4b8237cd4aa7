"""The page of all commands, ``docs/cli.md``, made from the commands' own ``--help``.

``python -m deploy.cli.reference`` (``make docs``) writes it; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from quantization.files import write_text

PAGE = Path("docs", "cli.md")
WIDTH = 120
HEAD = """# Command line

<!-- made by python -m deploy.cli.reference: changes by hand are lost -->

Every command and option, as `--help` shows them. `STUDENT` is a checkpoint, `BUNDLE` a folder that `flash-deploy build` made
([glossary](glossary.md)).

| exit code | |
|---|---|
| 0 | done |
| 1 | a check failed: the input was good and the result was not |
| 2 | bad input: the message says what, and what to do ([troubleshooting](troubleshooting.md)) |
| 130 | interrupted with Ctrl-C |

Results go to stdout, messages to stderr. Progress is shown on a terminal only.

`python -m flash_deploy` is the same program, `-h` and `-V` are short for `--help` and `--version`, and
`flash-deploy --install-completion` lets the shell complete commands and options.
"""


def cli_reference() -> str:
    """The whole page as Markdown."""
    import click
    import typer.main

    from deploy.cli.main import app

    root = typer.main.get_command(app)
    context = click.Context(root, info_name="flash-deploy", terminal_width=WIDTH, max_content_width=WIDTH)  # type: ignore[arg-type]
    commands = root.commands  # type: ignore[attr-defined]
    links = "\n".join(
        f"- [`{name}`](#flash-deploy-{name}): {command.get_short_help_str(WIDTH)}" for name, command in commands.items()
    )
    sections = []
    for name, command in commands.items():
        inner = click.Context(command, info_name=name, parent=context, terminal_width=WIDTH, max_content_width=WIDTH)
        sections.append(f"## `flash-deploy {name}`\n\n```text\n{command.get_help(inner).rstrip()}\n```")
    return "\n\n".join([HEAD.rstrip(), links, *sections]) + "\n"


def main() -> None:
    """Write the page, in a checkout's root."""
    write_text(PAGE, cli_reference())


if __name__ == "__main__":
    main()
