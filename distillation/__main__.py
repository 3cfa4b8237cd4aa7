"""One process of a run, as ``flash-deploy distill`` and launchers start it.

``python -m distillation RECIPE [TEACHER] -o RUN``
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

from distillation.run.order import Order
from exporters.errors import Complaint, InputError
from exporters.student.weights.lora.source import as_loras


def main() -> None:
    """Follow the order on the command line; exit codes are those of ``flash-deploy``."""
    parser = argparse.ArgumentParser(prog="python -m distillation", description=__doc__)
    parser.add_argument("recipe", help="a name of this package's, or a file")
    parser.add_argument("teacher", nargs="?", type=Path, help="folder or single file of the model to go on from")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:SCALE]", help="a LoRA to merge into the teacher")
    parser.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a component of the teacher from elsewhere",
    )
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="a change of the recipe")
    parser.add_argument("--stop-after", default="", metavar="STAGE", help="the last stage to make")
    parser.add_argument("--device", default="", help="cpu or cuda")
    parser.add_argument("--take-up", type=Path, metavar="FOLDER", help="a student that holds what stages have left")
    given = parser.parse_args()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    code = 1
    try:
        from distillation.run.start import follow

        loras = as_loras(given.lora)
        about = tuple(given.set), given.stop_after, given.device, loras, given.take_up
        components = {name: Path(path) for name, _, path in (one.partition("=") for one in given.component)}
        order = Order(given.recipe, given.teacher, given.output, *about, components)
        code = follow(order)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    except OSError as error:  # of a path that was given, or of a full disk
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        where = str(given.output) if error.filename is None else os.fsdecode(error.filename)
        sys.stderr.write(f"error: {Complaint(where, error.strerror or type(error).__name__)}\n")
        code = 2
    except KeyboardInterrupt:
        code = 130
    finally:
        if several and sys.exc_info()[0] is None:
            # at once: the interpreter's own end waits for the others, or is aborted by a thread of torch (Processes.end)
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
