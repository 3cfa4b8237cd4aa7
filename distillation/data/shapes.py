"""The world of shapes as a source: nothing is stored, pictures are drawn when they are asked for."""

from __future__ import annotations

from torch import Tensor

from distillation.data.settings import ShapesData
from distillation.data.source import Source, checked_number, digest
from distillation.world.numbered import pictures, scenes

__all__ = ["ShapesSource"]

VERSION = 5
"""Of the world: another one where the same numbers come to mean other scenes or pictures, or encoders learn other facts."""


class ShapesSource(Source):
    """Scenes of :mod:`distillation.world.scenes`, with their true pictures."""

    has_pictures = True

    def __init__(self, settings: ShapesData) -> None:
        self._count, self._seed = settings.count, settings.seed
        self.fingerprint = digest("shapes", VERSION, settings.count, settings.seed)

    def __len__(self) -> int:
        return self._count

    def prompt(self, number: int) -> str:
        return str(scenes([checked_number(number, self._count)], self._seed)[0])

    def picture(self, number: int) -> Tensor:
        return pictures([checked_number(number, self._count)], self._seed)[0]
