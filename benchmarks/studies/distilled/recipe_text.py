"""A recipe as the TOML that it could have been read from."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from distillation.recipe import Recipe

__all__ = ["recipe_toml"]


def recipe_toml(recipe: Recipe) -> str:
    """A recipe's text: one table a stage, all that it leaves to defaults said."""
    content = msgspec.to_builtins(recipe)
    tables = {key: content.pop(key) for key in ("stage", "student")}
    lines = [f"{key} = {_value(value)}" for key, value in content.items() if value is not None]
    for name, rows in tables.items():
        for row in rows:
            lines += ["", f"[[{name}]]", *(f"{key} = {_value(value)}" for key, value in row.items() if value is not None)]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A value, in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # of text, numbers and truth TOML has what JSON has
