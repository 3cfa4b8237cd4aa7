"""A recipe as the TOML that it could have been read from.

    python -m benchmarks.studies.distilled.recipe_text > distillation/recipes/ablations.toml

writes the recipe that ships: the rows of the ablation with one seed's random numbers, after the stages of ``shapes-cpu``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from benchmarks.studies.distilled.rows import STEPS, all_rows
from distillation.recipe import Recipe, load_recipe
from distillation.run.order import RECIPES

__all__ = ["ablations_toml", "recipe_toml"]


def recipe_toml(recipe: Recipe) -> str:
    """A recipe's text: one table a stage, what is as defaults say left out."""
    content = _told(recipe)
    tables = {key: content.pop(key, ()) for key in ("stage", "student")}
    lines = [f"{key} = {_value(value)}" for key, value in content.items()]
    return "\n".join([*lines, *_tables(tables)]) + "\n"


def ablations_toml() -> str:
    """The text of the recipe ``ablations``."""
    recipe = load_recipe(RECIPES / "shapes-cpu.toml")
    own = {stage.name: _told(stage) for row in all_rows(recipe, STEPS) for stage in row.seeded(0).stages}
    lines = [
        "# What each part of the method adds: rows that differ in one thing, from the stages of shapes-cpu and in its folder.",
        "# To train them with several seeds and to measure them: python -m benchmarks.studies.distilled.ablations RUN.",
        "# This file is written by python -m benchmarks.studies.distilled.recipe_text.",
        'name = "ablations"',
        'extends = "shapes-cpu.toml"',
    ]
    return "\n".join([*lines, *_tables({"stage": own.values()})]) + "\n"


def _tables(tables: dict[str, Iterable[dict[str, Any]]]) -> list[str]:
    lines = []
    for name, entries in tables.items():
        for entry in entries:
            lines += ["", f"[[{name}]]", *(f"{key} = {_value(value)}" for key, value in entry.items())]
    return lines


def _told(struct: msgspec.Struct) -> dict[str, Any]:
    """What a recipe, a stage or a part of one says that is not as its defaults are; its kind first."""
    config = struct.__struct_config__
    told: dict[str, Any] = {str(config.tag_field): config.tag} if config.tag is not None else {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if value != default and value is not None:
            told[field.encode_name] = _plain(value)
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _told(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _value(value: Any) -> str:
    """A value, in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(part)}" for key, part in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # of text, numbers and truth TOML has what JSON has


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


if __name__ == "__main__":
    sys.stdout.write(ablations_toml())
