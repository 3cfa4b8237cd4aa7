"""What stages have left, in a student that was handed out: a run of the same recipe need not make it again.

``distillation.json`` of a student tells which stage has left each of its components, and those of its variants, by the stage's
identity (:meth:`distillation.recipe.Recipe.identity`): a digest of all that the stage depends on.
"""

from __future__ import annotations

import json
from pathlib import Path

from distillation.recipe import Recipe
from distillation.run.jobs.needs import left
from distillation.run.lineage import Lineage
from distillation.run.outcome.publish import PROVENANCE, read_json, write_components
from distillation.stages import AnyStage, QuantizeStage
from exporters.errors import Complaint, InputError
from exporters.student.open import open_student
from quantization.files import write_text

__all__ = ["TAKEN_UP", "TakenUp"]

TAKEN_UP = "taken_up"
"""In the facts of a stage that was not made: where its result is from."""


class TakenUp:
    """A student that a run takes stages up from.

    Args:
        folder: of the student, in diffusers' layout.

    Raises:
        InputError: it does not tell which stages it is of.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        told = read_json(folder / PROVENANCE).get("components")
        variants = told if isinstance(told, dict) else {}
        #: By variant, the student's own under no name: which stage has left a component.
        self.components: dict[str, dict[str, str]] = {
            name: {str(part): str(identity) for part, identity in those.items()}
            for name, those in variants.items()
            if isinstance(those, dict)
        }
        if not self.components:
            complaint = Complaint(str(folder / PROVENANCE), "does not tell which stages have left its components")
            raise InputError(
                "No stage can be taken up.", [complaint], "give a student that `flash-deploy distill` has handed out"
            )

    def variant_of(self, stage: AnyStage, identity: str, recipe: Recipe) -> str | None:
        """The variant that holds all that a stage has left, the empty one for the student's own; none where nothing does.

        What learns beside its transformer is not in a student's components: a profile's codes, an adapter.
        """
        if isinstance(stage, QuantizeStage) or recipe.lora is not None:
            return None
        holds = (name for name, those in self.components.items() if all(those.get(part) == identity for part in left(stage)))
        return next(holds, None)

    def write(self, stage: AnyStage, identity: str, variant: str, folder: Path) -> None:
        """Write a stage's result, in fp32, as it was stored.

        Args:
            stage: that has left it.
            identity: of the stage.
            variant: of the student that holds it.
            folder: the result's.

        Raises:
            InputError: a component is not there, though the student tells of it, or a weight is no number.
            StudentError: the student's weights are not as its configuration says.
        """
        student = open_student(self.folder, variant=variant or None)
        lineage = Lineage(student, (), student.defaults.max_sequence_length)
        if missing := [part for part in left(stage) if not lineage.has(part)]:
            complaints = [
                Complaint(f"{self.folder}: {part}", "is not there", f"what stage {stage.name} has left") for part in missing
            ]
            raise InputError(
                "A stage cannot be taken up.", complaints, "copy or download the student again, with all its components"
            )
        write_components(lineage, left(stage), folder, "fp32")
        facts = {"name": stage.name, "identity": identity, TAKEN_UP: variant or student.path.name}
        write_text(folder / "stage.json", json.dumps(facts, indent=2))
