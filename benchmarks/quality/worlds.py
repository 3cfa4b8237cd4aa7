"""Captioned worlds, whose scorers tell right pictures from wrong ones exactly."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from distillation import shape_world
from distillation.world import scenes, score
from quantization.errors import Complaint, InputError

__all__ = ["World", "world_named"]


class World(Protocol):
    """A captioned world."""

    def captions(self, count: int, seed: int) -> list[str]:
        """Captions of a seed."""

    def right(self, picture: np.ndarray, caption: str) -> bool:
        """Whether a picture ``[64, 64, 3]`` in [0, 1] shows what a caption says."""


class _Shapes:
    """:mod:`distillation.world`."""

    def captions(self, count: int, seed: int) -> list[str]:
        return [str(scene) for scene in scenes.sample(count, seed)]

    def right(self, picture: np.ndarray, caption: str) -> bool:
        return score.score(picture, scenes.parse(caption))[0].right


class _FewerShapes:
    """:mod:`distillation.shape_world`: its captions are those of the other too."""

    def captions(self, count: int, seed: int) -> list[str]:
        return [str(caption) for caption in shape_world.sample_captions(count, seed)]

    def right(self, picture: np.ndarray, caption: str) -> bool:
        return shape_world.score(picture, shape_world.parse_caption(caption)).right


_WORLDS: dict[str | None, World] = {None: _FewerShapes(), "shapes": _Shapes()}


def world_named(name: str | None) -> World:
    """The world that ``student.json`` names; that of the first built-in student where it names none.

    Raises:
        InputError: no scorer knows it.
    """
    if name not in _WORLDS:
        complaint = Complaint("student.json: world", "no scorer knows it", f"{', '.join(filter(None, _WORLDS))}, or none", name)
        raise InputError("The student's pictures cannot be scored.", [complaint])
    return _WORLDS[name]
