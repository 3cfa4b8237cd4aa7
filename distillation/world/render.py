"""True pictures of scenes: everything that a caption leaves open is drawn at random, everything that it says holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distillation.shape_world import BACKGROUNDS, COLOURS, SIZE_PIXELS, offsets, shape_mask
from distillation.world.scenes import IN_FRONT, Scene, Thing

__all__ = ["HOLE", "STRIPE_PIXELS", "Placement", "place", "render"]

MIDDLE = SIZE_PIXELS / 2
GAP = 4.0  # pixels between objects that are not to touch
STRIPE_PIXELS = 7
#: Half extent of a hollow object's hole, of its own; a triangle's lies where it is as far from each side.
HOLE = 0.5
_PIXELS = np.mgrid[:SIZE_PIXELS, :SIZE_PIXELS] + 0.5
RADII = {None: (9.0, 11.5), "small": (8.5, 11.0), "large": (16.0, 20.0)}


@dataclass(frozen=True)
class Placement:
    """Where an object lies, in pixels.

    Attributes:
        x: of the centre, from the left.
        y: of the centre, from the top.
        radius: half its extent.
        phase: row at which its stripes begin.
    """

    x: float
    y: float
    radius: float
    phase: int = 0


def render(scene: Scene, seed: int) -> np.ndarray:
    """A true picture: ``[64, 64, 3]`` in [0, 1]."""
    return draw(scene, place(scene, np.random.default_rng(seed)))


def draw(scene: Scene, placements: list[Placement]) -> np.ndarray:
    """The picture of a scene whose objects lie so: ``[64, 64, 3]`` in [0, 1]."""
    picture = np.full((SIZE_PIXELS, SIZE_PIXELS, 3), BACKGROUNDS[scene.background], np.float32)
    for thing, at in reversed(list(zip(scene.things, placements, strict=True))):  # the first lies in front
        mask = mask_of(thing, at)
        picture[mask] = COLOURS[thing.colour]
        if thing.second:
            rows = (np.arange(SIZE_PIXELS) + at.phase) // STRIPE_PIXELS % 2 == 1
            picture[mask & rows[:, None]] = COLOURS[thing.second]
    return picture / 255


def mask_of(thing: Thing, at: Placement) -> np.ndarray:
    """The pixels of an object: ``[64, 64]``."""
    return filled(thing.shape, thing.fill, (_PIXELS[1] - at.x) / at.radius, (_PIXELS[0] - at.y) / at.radius)


def filled(shape: str, fill: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in an object of half extent 1 about the origin, its hole left out."""
    mask = shape_mask(shape, x, y)
    if fill == "hollow":
        down = 0.3 if shape == "triangle" else 0.0  # where it is as far from each side
        mask = mask & ~shape_mask(shape, x / HOLE, (y - down) / HOLE)
    return mask


def place(scene: Scene, rng: np.random.Generator) -> list[Placement]:
    """Places at random, tried until all that the scene says holds."""
    while True:
        placements = [_somewhere(thing, rng, _radius(scene, index, rng)) for index, thing in enumerate(scene.things)]
        if _holds(scene, placements):
            return placements


def _radius(scene: Scene, index: int, rng: np.random.Generator) -> float:
    thing = scene.things[index]
    if thing.fill == "striped":
        low, high = 15.0, 19.0  # room for four stripes
    elif scene.relation == IN_FRONT:
        low, high = ((9.0, 11.5), (14.0, 17.0))[index]
    elif len(scene.things) > 2:
        low, high = 7.5, 9.5
    elif thing.fill == "hollow" and thing.size == "small":
        low, high = 10.5, 12.0
    else:
        low, high = RADII[thing.size]
    return float(rng.uniform(low, high))


def _somewhere(thing: Thing, rng: np.random.Generator, radius: float) -> Placement:
    low, high = radius + 1, SIZE_PIXELS - radius - 1
    x, y = rng.uniform(low, high, 2)
    if thing.position == "centre":
        x, y = MIDDLE + rng.uniform(-4, 4, 2)
    elif thing.position:
        vertical, horizontal = thing.position.split()
        x = rng.uniform(low, 23) if horizontal == "left" else rng.uniform(41, high)
        y = rng.uniform(low, 23) if vertical == "upper" else rng.uniform(41, high)
    return Placement(float(x), float(y), radius, int(rng.integers(2 * STRIPE_PIXELS)))


def _holds(scene: Scene, placements: list[Placement]) -> bool:
    if scene.relation == IN_FRONT:
        front, back = (mask_of(thing, at) for thing, at in zip(scene.things, placements, strict=True))
        hidden = (front & back).sum()
        return bool(hidden >= 110 and 0.3 <= hidden / front.sum() <= 0.7)
    apart = all(
        max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP
        for index, a in enumerate(placements)
        for b in placements[:index]
    )
    return apart and (scene.relation is None or _related(placements[0], placements[1], scene.relation))


def _related(a: Placement, b: Placement, relation: str) -> bool:
    along, across = offsets(a, b, relation)
    return along >= 12 and along >= across + 4
