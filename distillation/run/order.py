"""What a run is asked for, and how it is asked of another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distillation.recipe import Recipe, RecipeError, load_recipe
from exporters.errors import Complaint, InputError
from exporters.student.open import open_student
from exporters.student.student import Student
from exporters.student.weights.lora.source import Lora

__all__ = ["RECIPES", "Order"]

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Order:
    """A run.

    Attributes:
        recipe: a name of this package's, or a file.
        teacher: folder or single file of the model to go on from.
        out: folder of the run.
        changes: of the recipe, ``stage.key=value``.
        stop_after: the last stage; all where empty.
        device: ``cpu``, ``cuda``; the best there is where empty.
        lora: LoRAs to merge into the teacher, in their order.
        components: of the teacher that come from elsewhere.
        take_up: folder of a student that holds what stages have left.

    Raises:
        InputError: there are LoRAs or components, and no teacher that they are of.
    """

    recipe: str
    teacher: Path | None
    out: Path
    changes: tuple[str, ...] = ()
    stop_after: str = ""
    device: str = ""
    lora: tuple[Lora, ...] = ()
    take_up: Path | None = None
    components: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lora and self.teacher is None:
            complaint = Complaint("--lora", "no teacher is given", "a TEACHER to merge it into", str(self.lora[0].path))
            raise InputError("The run cannot begin.", [complaint])
        if self.components and self.teacher is None:
            name, path = next(iter(self.components.items()))
            complaint = Complaint(f"--{name.replace('_', '-')}", "no teacher is given", "a TEACHER that it is of", str(path))
            raise InputError("The run cannot begin.", [complaint])

    def open_teacher(self) -> Student | None:
        """The model to go on from, LoRAs merged; none where the recipe makes one.

        Raises:
            InputError: it cannot be used.
        """
        return None if self.teacher is None else open_student(self.teacher, lora=self.lora, components=self.components)

    @property
    def file(self) -> Path:
        """The recipe's file.

        Raises:
            RecipeError: there is no such recipe.
        """
        named = RECIPES / f"{self.recipe}.toml"
        if self.recipe.endswith(".toml") or not named.is_file():
            file = Path(self.recipe)
            if not file.is_file():
                names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
                raise RecipeError(
                    "There is no such recipe.", [Complaint(self.recipe, "no such file", f"a file, or one of {names}")]
                )
            return file
        return named

    @property
    def place(self) -> Path:
        """Where paths of the recipe begin: at its file, or here where it is one of this package's."""
        return Path.cwd() if self.file.parent == RECIPES else self.file.parent

    def read(self) -> Recipe:
        """The recipe with its changes.

        Raises:
            RecipeError: it cannot be followed, or has no such stage to stop after.
        """
        recipe = load_recipe(self.file, self.changes)
        if self.stop_after:
            recipe.stage(self.stop_after)
        return recipe

    def arguments(self) -> list[str]:
        """What ``python -m distillation`` is given for it."""
        told = [self.recipe, *([] if self.teacher is None else [str(self.teacher)]), "-o", str(self.out)]
        for change in self.changes:
            told += ["--set", change]
        for one in self.lora:
            told += ["--lora", str(one)]
        for name, path in self.components.items():
            told += ["--component", f"{name}={path}"]
        options = {"--stop-after": self.stop_after, "--device": self.device, "--take-up": self.take_up}
        for option, value in options.items():
            told += [option, str(value)] if value else []
        return told
