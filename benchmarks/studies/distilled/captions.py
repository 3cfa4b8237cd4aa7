"""What is asked, by number: captions of either world, each with its own scorer. Who is asked does not change what is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distillation import shape_world
from distillation.world import numbered, render, score

__all__ = ["ASKED_SEED", "Captions"]

ASKED_SEED = 7 << 10
"""Of captions and true pictures here: recipes learn from scenes of seeds that a person would write, and judge by others."""
MOST_OBJECTS = 4


@dataclass(frozen=True)
class Captions:
    """Captions by number.

    Attributes:
        world: the captioned world, or the built-in student's own.
        seed: of the captions.
    """

    world: Literal["new", "old"] = "new"
    seed: int = ASKED_SEED

    def those(self, numbers: Sequence[int]) -> list[Any]:
        """The scenes, or the captions of the old world, of these numbers."""
        if self.world == "new":
            return list(numbered.scenes(numbers, self.seed))
        return [shape_world.sample_captions(1, (self.seed << 40) + number)[0] for number in numbers]

    def verdict(self, picture: np.ndarray, caption: Any) -> tuple[bool, np.ndarray]:
        """Whether a picture is right, and centres and half extents of what is seen in it.

        Args:
            picture: ``[64, 64, 3]`` in [0, 1].
            caption: one of :meth:`those`.

        Returns:
            The verdict, and ``[4, 3]`` in the order of the caption's things: NaN where there is nothing, all of it where the
            picture is wrong or the old world's scorer does not say.
        """
        places = np.full((MOST_OBJECTS, 3), np.nan, np.float32)
        if self.world == "old":
            return shape_world.score(picture, caption).right, places
        verdict, seen = score.score(picture, caption)
        if verdict.right:
            places[: len(seen)] = [(one.x, one.y, one.half_extent) for one in seen]
        return verdict.right, places

    def true_picture(self, caption: Any, seed: int) -> np.ndarray:
        """A picture that is right: ``[64, 64, 3]`` in [0, 1]."""
        return (render.render if self.world == "new" else shape_world.render)(caption, seed)


def kinds(captions: Iterable[Any]) -> np.ndarray:
    """The kind of each caption, ``[captions]`` of str."""
    return np.array([caption.kind for caption in captions])
