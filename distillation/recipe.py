"""A recipe: the stages of a distillation in a file, each with the stage that it goes on from.

::

    name = "shapes-cpu"
    seed = 0

    [[stage]]
    kind = "flow"
    name = "teacher"
    steps = 12000

    [[stage]]
    kind = "trajectory"
    name = "follow-4"
    after = "teacher"
    steps = 2500

Stages are a tree: those that go on from one stage share it, and all before it. A stage's identity is a digest of itself and of
all that it goes on from, the seed included: what was trained for one recipe is taken up by another exactly where both say the
same.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from distillation.levels import checked
from distillation.stages import AnyStage, MatchStage, TrajectoryStage
from exporters.errors import Complaint, InputError
from quantization.files import read_toml

__all__ = ["Recipe", "RecipeError", "load_recipe", "parse_recipe"]


class RecipeError(InputError):
    """A recipe cannot be followed."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stages, and what all of them share.

    Attributes:
        name: of the recipe.
        stages: in the order in which they run.
        seed: of all random numbers.
    """

    name: str
    stages: tuple[AnyStage, ...] = msgspec.field(name="stage")
    seed: int = 0

    def stage(self, name: str) -> AnyStage:
        """The stage of that name.

        Raises:
            RecipeError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise RecipeError(f"{self.name} has no such stage.", [Complaint("stage", "not in the recipe", names, name)])

    def way_to(self, name: str) -> tuple[AnyStage, ...]:
        """The stages that lead to one, the first of all first and itself last."""
        stage = self.stage(name)
        return (*self.way_to(stage.after), stage) if stage.after else (stage,)

    def identity(self, name: str) -> str:
        """A digest of a stage, of all that it goes on from, and of the seed."""
        way = [msgspec.to_builtins(stage) for stage in self.way_to(name)]
        return hashlib.sha256(json.dumps([self.seed, way], sort_keys=True).encode()).hexdigest()[:32]


def load_recipe(file: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        file: TOML.
        changes: ``seed=1`` or ``stage.key=value``, the value in TOML; ``teacher.optimizer.learning_rate=1e-3``.

    Raises:
        RecipeError: it cannot be read, or a change names nothing in it, or :func:`parse_recipe` refuses it.
    """
    content = read_toml(file, "recipe", RecipeError)
    for change in changes:
        _apply(content, change)
    return parse_recipe(content, str(file))


def parse_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Check what a recipe says.

    Raises:
        RecipeError: unknown or missing keys, wrong values, names that are there twice or lead nowhere, levels that do not fall.
    """
    if (place := _not_finite(content, "recipe")) is not None:
        raise RecipeError("The recipe cannot be followed.", [Complaint(where, f"{place} is no finite number")])
    try:
        recipe = msgspec.convert(content, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError("The recipe cannot be followed.", [Complaint(where, str(error))]) from error
    complaints = []
    before: set[str] = set()
    for stage in recipe.stages:
        if stage.name in before or not stage.name.replace("-", "").replace("_", "").isalnum():
            complaints.append(Complaint(where, f"stage {stage.name!r}", "a name of its own, of letters, digits, - and _"))
        if stage.after and stage.after not in before:
            complaints.append(Complaint(where, f"stage {stage.name}: after", "a stage before it", stage.after))
        if isinstance(stage, TrajectoryStage | MatchStage):
            try:
                checked(stage.levels, f"stage {stage.name}")
            except InputError as error:
                complaints.append(Complaint(where, error.headline))
        before.add(stage.name)
    if not recipe.stages:
        complaints.append(Complaint(where, "has no stages", "at least one [[stage]] table"))
    if complaints:
        raise RecipeError("The recipe cannot be followed.", complaints)
    return recipe


def _apply(content: dict[str, Any], change: str) -> None:
    """Change one value in place."""
    path, equals, text = change.partition("=")
    *way, key = path.strip().split(".")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word needs no quotes
    table: Any = content
    if way:
        stages = content.get("stage")
        tables = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
        named = [stage for stage in tables if stage.get("name") == way[0]]
        table = named[0] if named else None
        for name in way[1:]:
            table = table.setdefault(name, {}) if isinstance(table, dict) else None
    if not equals or not key or not isinstance(table, dict):
        example = "--set teacher.steps=100"
        raise RecipeError("A change names nothing in the recipe.", [Complaint("--set", "no such place", example, change)])
    table[key] = value


def _not_finite(value: Any, where: str) -> str | None:
    """Where a number is infinite or none, as TOML can say it."""
    if isinstance(value, float) and not math.isfinite(value):
        return where
    parts: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        parts = [(f"{where}.{key}", part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{where}[{index}]", part) for index, part in enumerate(value)]
    return next((place for name, part in parts if (place := _not_finite(part, name)) is not None), None)
