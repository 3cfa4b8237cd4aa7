"""What the students of a run are worth beside their teacher: right pictures, variety, sharpness, old captions and new.

    flash-deploy distill shapes-cpu -o RUN
    python -m benchmarks.studies.distilled RUN [--prompts 10000] [--stage follow-4] [--out FOLDER]

The teacher draws in 28 steps at several guidance scales, and in few steps by plain Euler; every student that the run has handed
out, and every stage that is named, with T5 and without it. All are asked the same captions from the same noise. Verdicts are
kept in the folder as they come: the same command goes on where it was stopped. It ends with ``study.json``, ``study.md``,
``sheet.png``, pictures of teacher and students side by side, and ``curves.png``, what the stages recorded while they learned.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.extra import need
from benchmarks.studies.distilled.captions import Captions
from benchmarks.studies.distilled.curves import curve, learning_curves
from benchmarks.studies.distilled.run_folder import RunFolder
from benchmarks.studies.distilled.sheet import sheet
from benchmarks.studies.distilled.study import Amounts, study
from benchmarks.studies.distilled.subjects import Network
from benchmarks.studies.distilled.tables import markdown
from benchmarks.studies.distilled.verdicts import Verdicts
from distillation.run.records import Display
from distillation.world.scenes import KINDS
from quantization.errors import InputError
from quantization.files import write_bytes, write_text


def main() -> None:
    """Measure, and write what it comes to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--prompts", type=int, default=Amounts.prompts, help="captions of the world")
    parser.add_argument("--old-prompts", type=int, default=Amounts.old_prompts, help="captions of the built-in student's world")
    parser.add_argument("--various", type=int, default=Amounts.various, help="captions that tell how various pictures are")
    parser.add_argument(
        "--choosing", type=int, default=Amounts.choosing, help="of the captions, to choose the teacher's guidance"
    )
    parser.add_argument("--guidance", type=float, action="append", help="a scale of the teacher (repeatable)")
    parser.add_argument("--seeds", type=int, default=Amounts.seeds, help="of the teacher's noise")
    parser.add_argument("--stage", action="append", default=[], help="a stage to measure beside the students (repeatable)")
    parser.add_argument("--out", type=Path, help="folder for verdicts and tables; RUN/study by default")
    parser.add_argument("--processes", type=int, default=2, help="that draw, of one thread each")
    given = parser.parse_args()
    scales = tuple(given.guidance or Amounts.scales)
    amounts = Amounts(given.prompts, given.old_prompts, given.various, given.choosing, scales, given.seeds)
    try:
        need("scipy", "matplotlib")
        _measure(RunFolder(given.run), given.out or given.run / "study", amounts, given.stage, given.processes)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def _measure(run: RunFolder, out: Path, amounts: Amounts, stages: Sequence[str], processes: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with Display(shown=True) as display:
        verdicts = Verdicts(out, processes, display)
        with verdicts.at_work():
            facts, shown = study(run, verdicts, amounts, stages)
    write_bytes(out / "study.json", msgspec.json.format(msgspec.json.encode(facts), indent=2))
    write_text(out / "study.md", markdown(facts))
    write_bytes(out / "sheet.png", _sheet(shown))
    curves = {stage.name: curve(run.metrics(stage.name), run.recipe.processes) for stage in run.recipe.stages}
    write_bytes(out / "curves.png", learning_curves({name: one for name, one in curves.items() if one is not None}))
    print(markdown(facts))


def _sheet(networks: Sequence[Network]) -> bytes:
    """The first caption of each kind, as each network draws it."""
    captions = Captions()
    numbers: dict[str, int] = {}
    for number, scene in enumerate(captions.those(range(200))):
        numbers.setdefault(scene.kind, number)
    first = {numbers[kind]: captions.those([numbers[kind]])[0] for kind in KINDS if kind in numbers}
    columns = {}
    for one in networks:
        draw = one.open(captions)
        columns[one.name] = np.concatenate([draw([scene], [number])[0] for number, scene in first.items()])
    return sheet([str(scene) for scene in first.values()], columns)


if __name__ == "__main__":
    main()
