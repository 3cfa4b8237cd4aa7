"""True pictures of scenes: everything that a caption leaves open is drawn at random, everything that it says holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distillation.shape_world import BACKGROUNDS, COLOURS, SIZE_PIXELS, offsets, shape_mask
from distillation.world.scenes import IN_FRONT, Scene, Thing

__all__ = ["HOLE", "STRIPE_PIXELS", "Placement", "place", "render"]

GAP = 4.0  # pixels between objects that are not to touch
STRIPE_PIXELS = 8
#: Half extent of a hollow object's hole, of its own; a triangle's lies where it is as far from each side.
HOLE = 0.5
_PIXELS = np.mgrid[:SIZE_PIXELS, :SIZE_PIXELS] + 0.5
#: Centres lie in the middle of latents, a few to choose from: how a shape of a size looks in latents is then one thing wherever
#: it is, and a small network learns both, shapes and that they may lie here or there, in minutes.
GRID_PIXELS = 8
LOW, CENTRE, HIGH = (12, 20), (28, 36), (44, 52)
SIDES = {"left": LOW, "upper": LOW, "right": HIGH, "lower": HIGH}
RADII: dict[str | None, tuple[float, ...]] = {None: (8, 10), "small": (8, 10), "large": (16, 18)}


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
        placements = [_somewhere(scene, index, rng) for index in range(len(scene.things))]
        if _holds(scene, placements):
            return placements


def _somewhere(scene: Scene, index: int, rng: np.random.Generator) -> Placement:
    across, down = _columns_and_rows(scene, index)
    radius = _radius(scene, index, rng)
    return Placement(float(rng.choice(across)), float(rng.choice(down)), radius, STRIPE_PIXELS * int(rng.integers(2)))


def _columns_and_rows(scene: Scene, index: int) -> tuple[Sequence[int], Sequence[int]]:
    """Where the centre of an object may lie, from the left and from the top."""
    thing = scene.things[index]
    if thing.position == "centre":
        return CENTRE, CENTRE
    if thing.position:
        vertical, horizontal = thing.position.split()
        return SIDES[horizontal], SIDES[vertical]
    if scene.kind in ("counting", "long"):
        return LOW + HIGH, LOW + HIGH
    if scene.kind == "relation":
        along = LOW if (index == 0) == (scene.relation in ("left of", "above")) else HIGH
        return (along, CENTRE) if scene.relation in ("left of", "right of") else (CENTRE, along)
    if scene.kind == "overlap" and index == 0:
        return LOW + CENTRE + HIGH, LOW + CENTRE + HIGH
    around = CENTRE if thing.size != "small" else (LOW[1], *CENTRE, HIGH[0])
    return around, around


def _radius(scene: Scene, index: int, rng: np.random.Generator) -> float:
    thing = scene.things[index]
    radii = RADII[thing.size]
    if thing.fill == "striped":
        radii = RADII["large"]  # room for four stripes
    elif scene.relation == IN_FRONT:
        radii = ((10, 12), (16,))[index]
    elif len(scene.things) > 2:
        radii = (8,)
    elif thing.fill == "hollow" and thing.size == "small":
        radii = (12,)
    return float(rng.choice(radii))


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
