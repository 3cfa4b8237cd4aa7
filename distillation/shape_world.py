"""The built-in student's world: captions, the pictures they describe, and an exact scorer, in numpy alone.

A caption names coloured shapes on a background (``exporters/builtin_student/README.md``)::

    a large red circle on a white background
    a red circle left of a blue square on a black background
    three yellow crosses on a gray background

:func:`render` draws a true picture of a caption, :func:`score` says what of a caption holds in a picture. Scoring: nearest
palette entry for each pixel, 4-connected components of a colour, and for each component the shape whose template overlaps its
bounding box best.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 50),
    "purple": (150, 60, 190),
    "cyan": (60, 200, 220),
}
BACKGROUNDS = {"white": 245, "black": 15, "gray": 128}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {"two": 2, "three": 3, "four": 4}
SIZE_PIXELS = 64

MAX_COLOUR_DISTANCE = 70.0
MIN_COMPONENT_PIXELS = 25
TEMPLATE_PIXELS, MIN_OVERLAP = 24, 0.7
MIN_OFFSET_PIXELS = 8.0
LARGE_HALF_EXTENT_PIXELS = 13.0

_SINGLE = re.compile(rf"a (small|large) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
_OBJECT = rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_RELATION = re.compile(rf"{_OBJECT} ({'|'.join(RELATIONS)}) {_OBJECT}")
_COUNTING = re.compile(rf"({'|'.join(COUNTS)}) ({'|'.join(COLOURS)}) (circles|squares|triangles|crosses)")


@dataclass(frozen=True)
class Caption:
    """What a caption says.

    Attributes:
        kind: single, relation or counting.
        objects: (colour, shape) of each object, in the caption's order.
        background: name of the background.
        size: of a single object.
        relation: of the first object to the second.
    """

    kind: Literal["single", "relation", "counting"]
    objects: tuple[tuple[str, str], ...]
    background: str
    size: str | None = None
    relation: str | None = None

    def __str__(self) -> str:
        colour, shape = self.objects[0]
        if self.kind == "single":
            what = f"a {self.size} {colour} {shape}"
        elif self.kind == "relation":
            what = f"a {colour} {shape} {self.relation} a {' '.join(self.objects[1])}"
        else:
            plural = "crosses" if shape == "cross" else f"{shape}s"
            what = f"{next(word for word, n in COUNTS.items() if n == len(self.objects))} {colour} {plural}"
        return f"{what} on a {self.background} background"


def parse_caption(text: str) -> Caption:
    """Read a caption.

    Raises:
        ValueError: it is not one of this world's.

    >>> parse_caption("two red crosses on a gray background").objects
    (('red', 'cross'), ('red', 'cross'))
    """
    what, _, where = text.partition(" on a ")
    background = where.removesuffix(" background")
    if background not in BACKGROUNDS or not where.endswith(" background"):
        raise ValueError(f"no background of this world in {text!r}")
    if match := _SINGLE.fullmatch(what):
        return Caption("single", ((match[2], match[3]),), background, size=match[1])
    if match := _RELATION.fullmatch(what):
        return Caption("relation", ((match[1], match[2]), (match[4], match[5])), background, relation=match[3])
    if match := _COUNTING.fullmatch(what):
        shape = "cross" if match[3] == "crosses" else match[3].removesuffix("s")
        return Caption("counting", ((match[2], shape),) * COUNTS[match[1]], background)
    raise ValueError(f"not a caption of this world: {text!r}")


def sample_captions(count: int, seed: int) -> list[Caption]:
    """Captions drawn 40 % single, 30 % relation, 30 % counting, as the student was trained on."""
    rng = np.random.default_rng(seed)

    def pick(options: object) -> str:
        names = list(options)  # type: ignore[call-overload]
        return str(names[rng.integers(len(names))])

    captions = []
    for kind in rng.choice(["single", "relation", "counting"], count, p=[0.4, 0.3, 0.3]):
        background, first = pick(BACKGROUNDS), (pick(COLOURS), pick(SHAPES))
        if kind == "single":
            captions.append(Caption("single", (first,), background, size=pick(("small", "large"))))
        elif kind == "relation":
            captions.append(Caption("relation", (first, (pick(COLOURS), pick(SHAPES))), background, relation=pick(RELATIONS)))
        else:
            captions.append(Caption("counting", (first,) * COUNTS[pick(COUNTS)], background))
    return captions


def shape_mask(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in the shape of half extent 1 about the origin; y grows downwards.

    Args:
        shape: one of :data:`SHAPES`.
        x: horizontal coordinates.
        y: vertical coordinates.
    """
    if shape == "circle":
        return np.asarray(x**2 + y**2 <= 1)
    inside = (abs(x) <= 1) & (abs(y) <= 1)
    if shape == "square":
        return inside
    if shape == "triangle":  # the apex above
        return inside & (abs(x) <= (y + 1) / 2)
    return inside & ((abs(x) <= 1 / 3) | (abs(y) <= 1 / 3))


def render(caption: Caption, seed: int) -> np.ndarray:
    """A true picture of a caption: ``[64, 64, 3]`` in [0, 1], the objects placed at random as the student has seen them."""
    rng = np.random.default_rng(seed)
    picture = np.full((SIZE_PIXELS, SIZE_PIXELS, 3), BACKGROUNDS[caption.background], np.float32)
    y, x = np.mgrid[:SIZE_PIXELS, :SIZE_PIXELS] + 0.5
    for (colour, shape), (centre_x, centre_y, radius) in zip(caption.objects, _places(caption, rng), strict=True):
        picture[shape_mask(shape, (x - centre_x) / radius, (y - centre_y) / radius)] = COLOURS[colour]
    return picture / 255


def _places(caption: Caption, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centre and half extent of each object, in pixels."""
    middle = SIZE_PIXELS / 2
    if caption.kind == "single":
        low, high = (7, 9) if caption.size == "small" else (17, 20)
        return [(*(middle + rng.uniform(-4, 4, 2)), rng.uniform(low, high))]
    if caption.kind == "relation":
        sign = -1 if caption.relation in ("left of", "above") else 1
        offsets = [sign * rng.uniform(15, 17), -sign * rng.uniform(15, 17)]
        across = rng.uniform(-4, 4, 2)
        places = [(middle + along, middle + side) for along, side in zip(offsets, across, strict=True)]
        if caption.relation in ("above", "below"):
            places = [(b, a) for a, b in places]
        return [(*place, rng.uniform(9, 12)) for place in places]
    cells = rng.permutation(4)[: len(caption.objects)]
    jitter = rng.uniform(-2, 2, (len(cells), 2))
    return [
        (16 + 32 * (cell % 2) + j[0], 16 + 32 * (cell // 2) + j[1], rng.uniform(8, 10))
        for cell, j in zip(cells, jitter, strict=True)
    ]


class Centred(Protocol):
    """Whatever has a centre, in pixels from the left and from the top."""

    @property
    def x(self) -> float: ...

    @property
    def y(self) -> float: ...


@dataclass(frozen=True)
class SceneObject:
    """One object in a picture: what it is, its centre and its half extent in pixels."""

    colour: str
    shape: str | None
    x: float
    y: float
    half_extent: float


@dataclass(frozen=True)
class Verdict:
    """What of a caption holds in a picture; ``right`` when all of it does."""

    background: bool
    objects: bool
    arrangement: bool

    @property
    def right(self) -> bool:
        """Whether the picture passes."""
        return self.background and self.objects and self.arrangement


def score(picture: np.ndarray, caption: Caption) -> Verdict:
    """Compare a picture with a caption.

    Args:
        picture: ``[64, 64, 3]`` in [0, 1].
        caption: what it should show.

    Raises:
        ValueError: the picture holds NaN or infinity, or has another shape.
    """
    if picture.shape != (SIZE_PIXELS, SIZE_PIXELS, 3) or not np.isfinite(picture).all():
        raise ValueError(f"expected a finite picture of shape [64, 64, 3], got {list(picture.shape)}")
    labels = nearest_entry(picture)
    border = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    names = [*COLOURS, *BACKGROUNDS]
    majority = np.bincount(border[border >= 0], minlength=len(names)).argmax() if (border >= 0).any() else 0
    scene = _find_objects(labels)
    objects = sorted((f.colour, f.shape) for f in scene if f.shape) == sorted(caption.objects) and all(f.shape for f in scene)
    return Verdict(names[majority] == caption.background, objects, objects and _arranged(scene, caption))


def nearest_entry(picture: np.ndarray) -> np.ndarray:
    """Index of each pixel's palette entry (colours, then backgrounds), -1 where none is near."""
    palette = np.array([*COLOURS.values(), *((grey,) * 3 for grey in BACKGROUNDS.values())], np.float32)
    distance = np.linalg.norm(picture[:, :, None] * 255 - palette, axis=-1)
    return np.where(distance.min(axis=-1) <= MAX_COLOUR_DISTANCE, distance.argmin(axis=-1), -1)


def _find_objects(labels: np.ndarray) -> list[SceneObject]:
    objects = []
    for index, colour in enumerate(COLOURS):
        for mask in components(labels == index):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            y, x = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
            objects.append(SceneObject(colour, _best_shape(box), x, y, max(box.shape) / 2))
    return objects


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected components of a mask that have at least 25 pixels."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # each pixel takes the largest label among itself and its neighbours, until none changes
        padded = np.pad(labels, 1)
        neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        spread = np.where(mask, np.maximum.reduce((labels, *neighbours)), 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    names, counts = np.unique(labels[mask], return_counts=True)
    return [labels == name for name, count in zip(names, counts, strict=True) if count >= MIN_COMPONENT_PIXELS]


def _best_shape(box: np.ndarray) -> str | None:
    """The shape whose template overlaps the box's content best, if the overlap (IoU) is above 0.7."""
    at = (np.arange(TEMPLATE_PIXELS) + 0.5) / TEMPLATE_PIXELS
    content = box[np.ix_((at * box.shape[0]).astype(int), (at * box.shape[1]).astype(int))]
    x, y = np.meshgrid(2 * at - 1, 2 * at - 1)
    overlaps = {}
    for shape in SHAPES:
        template = shape_mask(shape, x, y)
        overlaps[shape] = (content & template).sum() / (content | template).sum()
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] > MIN_OVERLAP else None


def _arranged(scene: list[SceneObject], caption: Caption) -> bool:
    """Whether the objects, already known to be the right ones, are of the right size or lie as the caption says."""
    if caption.kind == "single":
        return (scene[0].half_extent > LARGE_HALF_EXTENT_PIXELS) == (caption.size == "large")
    if caption.kind == "counting":
        return True
    pairs = [(a, b) for a in scene for b in scene if a is not b and ((a.colour, a.shape), (b.colour, b.shape)) == caption.objects]
    return any(_related(a, b, str(caption.relation)) for a, b in pairs)


def _related(a: SceneObject, b: SceneObject, relation: str) -> bool:
    along, across = offsets(a, b, relation)
    return along > MIN_OFFSET_PIXELS and along > across


def offsets(a: Centred, b: Centred, relation: str) -> tuple[float, float]:
    """How far b lies from a in the direction that a relation of a to b names, and how far across it, in pixels."""
    dx, dy = b.x - a.x, b.y - a.y
    along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
    return along, abs(across)


def accuracy(verdicts: list[Verdict]) -> tuple[float, float]:
    """Share of right pictures, and half the width of its 95 % interval (normal approximation)."""
    share = sum(verdict.right for verdict in verdicts) / len(verdicts)
    return share, 1.96 * float(np.sqrt(share * (1 - share) / len(verdicts)))
