"""True pictures of scenes: everything that a caption leaves open is drawn at random, everything that it says holds."""

from __future__ import annotations

import math
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
#: Centres lie on a grid: a small network can learn what a shape looks like at a few places within a latent, not at all of them.
GRID_PIXELS = 4
RADII: dict[str | None, tuple[float, ...]] = {None: (9, 11), "small": (9, 11), "large": (16, 18, 20)}


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
    radii = RADII[thing.size]
    if thing.fill == "striped":
        radii = (17, 19)  # room for four stripes
    elif scene.relation == IN_FRONT:
        radii = ((9, 11), (15, 17))[index]
    elif len(scene.things) > 2:
        radii = (8, 9)
    elif thing.fill == "hollow" and thing.size == "small":
        radii = (11, 12)
    return float(rng.choice(radii))


def _somewhere(thing: Thing, rng: np.random.Generator, radius: float) -> Placement:
    low, high = radius + 1, SIZE_PIXELS - radius - 1
    across = down = (low, high)
    if thing.position == "centre":
        across = down = (MIDDLE - GRID_PIXELS, MIDDLE + GRID_PIXELS)
    elif thing.position:
        vertical, horizontal = thing.position.split()
        across = (low, 23) if horizontal == "left" else (41, high)
        down = (low, 23) if vertical == "upper" else (41, high)
    return Placement(_on_grid(across, rng), _on_grid(down, rng), radius, STRIPE_PIXELS * int(rng.integers(2)))


def _on_grid(limits: tuple[float, float], rng: np.random.Generator) -> float:
    low, high = limits
    return float(GRID_PIXELS * rng.integers(math.ceil(low / GRID_PIXELS), math.floor(high / GRID_PIXELS) + 1))


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
