"""The command line: thin over the library. Exit 0 done, 1 a check failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import errno
import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from deploy.cli.card import card
from deploy.cli.check import inspect, tiers, verify
from deploy.cli.draw import generate, serve, web_runtime
from deploy.cli.make import build, calibrate, distill, make_student, tune
from deploy.cli.measure import bench, compare, predict
from deploy.cli.options import messages
from deploy.errors import CheckFailed, Complaint, InputError
from deploy.interrupts import interruptible

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
COMMANDS = (
    build,
    calibrate,
    tune,
    generate,
    verify,
    bench,
    compare,
    predict,
    card,
    inspect,
    web_runtime,
    serve,
    tiers,
    make_student,
    distill,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Few-step text-to-image students to on-device bundles: build, verify, run.",
)
for _command in COMMANDS:
    app.command(_command.__name__.replace("_", "-"))(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flash-deploy {metadata.version('flash-deploy')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: turns errors into messages and exit codes (typer itself exits with 130 when interrupted)."""
    try:
        with interruptible():
            app()
    except KeyboardInterrupt:
        sys.exit(130)
    except InputError as error:
        messages.print(f"error: {error}", markup=False)
        sys.exit(2)
    except CheckFailed as error:
        messages.print(f"failed:\n{error}", markup=False)
        sys.exit(1)
    except OSError as error:  # of a path that was given: a name too long, a folder that may not be entered; or of a full disk
        if error.filename is None and error.errno not in FULL:
            raise
        where = "output" if error.filename is None else os.fsdecode(error.filename)
        messages.print(f"error: {Complaint(where, error.strerror or type(error).__name__)}", markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
