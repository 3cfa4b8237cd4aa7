"""The folder of a run: its recipe, its teacher, its students, as networks that draw."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.studies.distilled.subjects import Network
from distillation.data.settings import ShapesData
from distillation.levels import checked, shifted
from distillation.networks.drawing import teacher_levels
from distillation.recipe import Recipe, parse_recipe
from distillation.run.lineage import PROFILE
from distillation.run.outcome.publish import PROVENANCE
from distillation.run.pipeline import Distillation
from distillation.run.processes import Processes
from distillation.run.records import METRICS, Display
from distillation.run.signals import Stop
from distillation.stages import FlowStage, StudentStage
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT
from quantization.errors import Complaint, InputError

__all__ = ["RunFolder", "builtin", "student"]


class RunFolder:
    """A run of a recipe that makes a teacher of the captioned world from nothing.

    Args:
        folder: of the run.

    Raises:
        InputError: it is none, or of another kind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            content = json.loads((folder / "recipe.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            complaint = Complaint(str(folder / "recipe.json"), "no recipe of a run", got=str(error))
            raise InputError("There is no run to study.", [complaint], "flash-deploy distill shapes-cpu -o RUN") from error
        self.recipe: Recipe = parse_recipe(content, str(folder / "recipe.json"))
        flows = [stage.name for stage in self.recipe.stages if isinstance(stage, FlowStage)]
        if not flows or not isinstance(self.recipe.data, ShapesData):
            complaint = Complaint(self.recipe.name, "another kind of run", "a teacher of kind flow on data of kind shapes")
            raise InputError("The run cannot be studied: nothing tells right pictures from wrong ones.", [complaint])
        self.teacher_stage = flows[-1]
        self.run = Distillation(self.recipe, Path.cwd(), None, folder, Processes(), Display(shown=False), Stop())

    def stage_folder(self, name: str) -> Path:
        """Where a stage was made.

        Raises:
            InputError: it was not, or the recipe has no such stage.
        """
        result = self.run.lineage(name).results[0]
        if not (result / "stage.json").is_file():
            complaint = Complaint(name, "has left no result", str(result))
            raise InputError("A stage was not made yet.", [complaint], "let the run go on: the command that began it")
        return result.parent

    def metrics(self, name: str) -> list[dict[str, float]]:
        """What the first process recorded of each step of a stage; nothing of a stage that has none, or has not begun."""
        file = self.run.lineage(name).results[0].parent / METRICS
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []

    def stage(self, name: str) -> Network:
        """What a stage left, sampled and stored as it learned to: a student at its levels, a teacher in 28 steps unguided.

        Raises:
            InputError: as :meth:`stage_folder`.
        """
        lineage, stage = self.run.lineage(name), self.recipe.stage(name)
        facts = json.loads((self.stage_folder(name) / "result" / "stage.json").read_text("utf-8"))
        levels = checked(stage.levels, name) if isinstance(stage, StudentStage) else teacher_levels()
        profile = lineage.beside_transformer(PROFILE)
        return Network(name, facts["identity"], levels, results=lineage.results, t5_length=lineage.t5_length, profile=profile)

    def teacher(self) -> Network:
        """The teacher without guidance.

        Raises:
            InputError: it was not made yet.
        """
        return self.stage(self.teacher_stage).named("teacher")

    def students(self) -> list[Network]:
        """What the run has handed out, those of most steps first."""
        folders = sorted(file.parent for file in self.folder.glob(f"*/{PROVENANCE}"))
        return sorted((student(folder) for folder in folders), key=lambda one: -one.steps)


def student(folder: Path) -> Network:
    """A student in diffusers' layout, sampled as its ``student.json`` says.

    Raises:
        InputError: it is not usable, or does not say at which levels it samples.
    """
    opened = open_student(folder)
    sigmas, shift = opened.defaults.sigmas, float(opened.configs["scheduler"].get("shift", 1.0))
    if sigmas is None:
        raise InputError(f"{folder} does not say at which levels it samples.", [Complaint("student.json", "no sigmas")])
    levels = checked((*(round(shifted(sigma, shift), 9) for sigma in sigmas), 0.0), str(folder))
    length = opened.defaults.max_sequence_length
    return Network(folder.name, opened.fingerprint(), levels, folder=folder, t5_length=length)


def builtin() -> Network:
    """The student that this package ships."""
    return student(BUILTIN_STUDENT).named("built-in student")
