"""From what a recipe says to the samples themselves."""

from __future__ import annotations

from pathlib import Path

from distillation.data.folder import FolderSource
from distillation.data.latents import LatentsSource
from distillation.data.prompts import PromptsSource
from distillation.data.settings import AnyData, FolderData, LatentsData, ShapesData, ShardsData
from distillation.data.shapes import ShapesSource
from distillation.data.shards import ShardsSource
from distillation.data.source import Source

__all__ = ["open_source"]


def open_source(settings: AnyData, folder_of_recipe: Path) -> Source:
    """The samples that a recipe names.

    Args:
        settings: its ``[data]``.
        folder_of_recipe: where paths begin that are not absolute.

    Raises:
        DataError: there are none, or what is there cannot be read.
    """
    if isinstance(settings, ShapesData):
        return ShapesSource(settings)
    if isinstance(settings, FolderData):
        return FolderSource(folder_of_recipe / settings.path, settings)
    if isinstance(settings, ShardsData):
        return ShardsSource(folder_of_recipe, settings)
    if isinstance(settings, LatentsData):
        return LatentsSource(folder_of_recipe / settings.path)
    return PromptsSource(folder_of_recipe / settings.file)
