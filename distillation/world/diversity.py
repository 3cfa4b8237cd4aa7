"""Whether pictures are as various as the world: a network that draws each caption well and always alike has lost something.

What a caption leaves open (where its objects lie, how large they are) the renderer draws at random. Of pictures that are right,
the same is measured as the scorer sees it, and compared with true pictures of the same captions by the Kolmogorov-Smirnov
distance: 0 for one law, 1 for laws that share nothing. The renderer's law has a few values only, and a picture that is off by
half a pixel is not of another: both are blurred by as much as those values are apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from distillation.world.render import GRID_PIXELS, render
from distillation.world.scenes import Scene
from distillation.world.score import score

__all__ = ["Variety", "distance", "measure", "reference"]

STATISTICS = ("x", "y", "half_extent")
APART_PIXELS = (GRID_PIXELS, GRID_PIXELS, 2.0)
"""How far the values lie apart that true pictures have of each."""
BLUR_POINTS = 16


@dataclass(frozen=True)
class Variety:
    """What was left open, as it was drawn: for each kind of scene ``[objects, 3]``, centres and half extents in pixels."""

    by_kind: dict[str, np.ndarray]


def measure(scenes: Sequence[Scene], pictures: Iterable[np.ndarray]) -> Variety:
    """The places and sizes of the objects in those pictures that are right.

    Args:
        scenes: what they should show.
        pictures: ``[64, 64, 3]`` in [0, 1] each.
    """
    rows: dict[str, list[list[float]]] = {}
    for scene, picture in zip(scenes, pictures, strict=True):
        verdict, seen = score(picture, scene)
        if verdict.right:
            rows.setdefault(scene.kind, []).extend([one.x, one.y, one.half_extent] for one in seen)
    return Variety({kind: np.array(values) for kind, values in rows.items()})


def reference(scenes: Sequence[Scene], seed: int) -> Variety:
    """The same of true pictures of these scenes."""
    return measure(scenes, (render(scene, (seed << 32) + number) for number, scene in enumerate(scenes)))


def distance(drawn: Variety, true: Variety) -> dict[str, float]:
    """Kolmogorov-Smirnov distances, the mean over centres and sizes: for each kind, and ``all``, weighted by objects.

    Raises:
        ValueError: the two share no kind: nothing that was drawn is right.
    """
    from scipy.stats import ks_2samp

    kinds = sorted(drawn.by_kind.keys() & true.by_kind.keys())
    if not kinds:
        raise ValueError("no picture is right: there is nothing to compare")
    ours, theirs = ({kind: _blurred(of.by_kind[kind]) for kind in kinds} for of in (drawn, true))
    by_kind = {
        kind: float(np.mean([ks_2samp(ours[kind][:, i], theirs[kind][:, i]).statistic for i in range(len(STATISTICS))]))
        for kind in kinds
    }
    weights = [len(drawn.by_kind[kind]) for kind in kinds]
    return by_kind | {"all": float(np.average([by_kind[kind] for kind in kinds], weights=weights))}


def _blurred(values: np.ndarray) -> np.ndarray:
    """Values ``[objects, 3]``, each spread evenly over what lies between two true ones: ``[objects * BLUR_POINTS, 3]``."""
    spread = (np.arange(BLUR_POINTS) + 0.5) / BLUR_POINTS - 0.5
    blurred: np.ndarray = values[:, None, :] + spread[:, None] * np.array(APART_PIXELS)
    return blurred.reshape(-1, values.shape[1])
