"""An exact scorer: what of a caption holds in a picture, in numpy alone.

Pixels take the nearest colour of the palette; what is connected and no background is one object, or two of which one lies in
front. An object's shape and fill are those whose template overlaps it best. Then each thing of the caption has to be one of the
objects.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from distillation.shape_world import (
    BACKGROUNDS,
    COLOURS,
    LARGE_HALF_EXTENT_PIXELS,
    MIN_OFFSET_PIXELS,
    MIN_OVERLAP,
    SHAPES,
    SIZE_PIXELS,
    Verdict,
    components,
    nearest_entry,
    offsets,
)
from distillation.world.render import STRIPE_PIXELS, filled
from distillation.world.scenes import HOLLOW_SHAPES, IN_FRONT, Scene, Thing

__all__ = ["Seen", "score", "see"]

#: Pixels of a colour within an object whose neighbours are all of that colour; fewer are the blur between two others.
MIN_INNER_PIXELS = 6
MIN_OBJECT_PIXELS = 25
BLUR = len(COLOURS)  # within an object: of no colour that it has
#: A position's side begins so far from the middle; the centre ends there.
OFF_CENTRE_PIXELS = 6.0


@dataclass(frozen=True)
class Seen:
    """One object in a picture.

    Attributes:
        colours: its colour, or the two of its stripes.
        shape: none where no template fits.
        fill: solid, hollow or striped.
        x: centre of its extent, in pixels from the left.
        y: from the top.
        half_extent: in pixels.
        before: whether it lies in front of another.
        behind: whether it lies behind another.
    """

    colours: frozenset[str]
    shape: str | None
    fill: str
    x: float
    y: float
    half_extent: float
    before: bool = False
    behind: bool = False


def score(picture: np.ndarray, scene: Scene) -> tuple[Verdict, list[Seen]]:
    """Compare a picture with a scene.

    Args:
        picture: ``[64, 64, 3]`` in [0, 1].
        scene: what it should show.

    Returns:
        The verdict, and the objects in the order of the scene's things where it is right (as they were seen otherwise).

    Raises:
        ValueError: the picture holds NaN or infinity, or has another shape.
    """
    background, seen = see(picture)
    for order in itertools.permutations(seen) if len(seen) == len(scene.things) else ():
        if all(_is(one, thing) for one, thing in zip(order, scene.things, strict=True)) and _arranged(order, scene):
            return Verdict(background == scene.background, objects=True, arrangement=True), list(order)
    objects = Counter(map(_described, seen)) == Counter(map(_asked, scene.things))
    return Verdict(background == scene.background, objects=objects, arrangement=False), seen


def see(picture: np.ndarray) -> tuple[str, list[Seen]]:
    """The background and the objects of a picture.

    Raises:
        ValueError: the picture holds NaN or infinity, or has another shape.
    """
    if picture.shape != (SIZE_PIXELS, SIZE_PIXELS, 3) or not np.isfinite(picture).all():
        raise ValueError(f"expected a finite picture of shape [64, 64, 3], got {list(picture.shape)}")
    labels = nearest_entry(picture)
    names = [*COLOURS, *BACKGROUNDS]
    border = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    border = border[border >= len(COLOURS)]
    background = names[np.bincount(border).argmax()] if border.size else ""
    coloured = _without_specks((labels >= 0) & (labels < len(COLOURS)))
    objects = [
        mask & coloured for mask in components(_grown(coloured))
    ]  # blur may part what lies on one another by a pixel or two
    return background, [
        one for mask in objects if mask.sum() >= MIN_OBJECT_PIXELS for one in _objects(np.where(mask, labels, -1))
    ]


def _objects(labels: np.ndarray) -> list[Seen]:
    """The object, or the two, that hang together: ``labels`` holds their colours and what lies between them, and -1 elsewhere."""
    inner = {index: int((~_grown(labels != index)).sum()) for index in range(len(COLOURS))}
    colours = [index for index in sorted(inner, key=inner.__getitem__, reverse=True) if inner[index] >= MIN_INNER_PIXELS]
    labels = np.where(np.isin(labels, colours) | (labels < 0), labels, BLUR)
    names = list(COLOURS)
    whole = labels != -1
    if len(colours) == 1:
        return [_fitted(whole, frozenset({names[colours[0]]}), ("solid", "hollow"))]
    if len(colours) == 2:
        pair = frozenset(names[index] for index in colours)
        if _is_striped(labels, colours):
            return [_fitted(whole, pair, ("striped",))]
        if overlapping := _front_and_back(labels, colours):
            return overlapping
    return [Seen(frozenset(names[index] for index in colours), None, "solid", *_extent(whole))]


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask and all pixels that touch it, at a corner too."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return np.asarray(rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:])


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """A mask without pixels of which fewer than three neighbours are in it: noise, not an object's edge."""
    padded = np.pad(mask.astype(int), 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray(mask & (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] > 3))


def _extent(mask: np.ndarray) -> tuple[float, float, float]:
    """Centre and half extent of a mask, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    width, height = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    return (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2, max(width, height) / 2


def _fitted(mask: np.ndarray, colours: frozenset[str], fills: tuple[str, ...]) -> Seen:
    x, y, half = _extent(mask)
    shape, fill, _, _ = _best(mask, np.zeros_like(mask), [(x, y, half)], fills)
    return Seen(colours, shape, fill, x, y, half)


_PIXELS = np.mgrid[:SIZE_PIXELS, :SIZE_PIXELS] + 0.5


def _best(
    mask: np.ndarray, hidden: np.ndarray, places: list[tuple[float, float, float]], fills: tuple[str, ...]
) -> tuple[str | None, str, tuple[float, float, float], float]:
    """The shape and fill whose template overlaps a mask best, and at which of some places and how well (IoU).

    No shape where none overlaps by more than 0.7.

    Args:
        mask: the object's visible pixels.
        hidden: pixels of which nothing is known.
        places: centres and half extents to try.
        fills: to try.
    """
    best: tuple[str | None, str, tuple[float, float, float]] = (None, fills[0], places[0])
    overlap = MIN_OVERLAP
    for place in places:
        x, y, half = place
        low_x, high_x = max(0, int(x - half) - 1), int(x + half) + 2
        low_y, high_y = max(0, int(y - half) - 1), int(y + half) + 2
        window = (slice(low_y, high_y), slice(low_x, high_x))
        visible = ~hidden[window]
        outside = int(mask.sum() - mask[window].sum())
        at_y, at_x = (_PIXELS[0][window] - y) / half, (_PIXELS[1][window] - x) / half
        for shape in SHAPES:
            for fill in fills:
                if fill == "hollow" and shape not in HOLLOW_SHAPES:
                    continue
                template = filled(shape, fill, at_x, at_y) & visible
                both = int((template & mask[window]).sum())
                iou = both / (int((template | (mask[window] & visible)).sum()) + outside)
                if iou > overlap:
                    best, overlap = (shape, fill, place), iou
    return *best, overlap


def _is_striped(labels: np.ndarray, colours: list[int]) -> bool:
    """Whether rows are of one colour each and change it every few pixels."""
    rows = []
    for row in labels[np.isin(labels, colours).any(axis=1)]:
        first, second = int((row == colours[0]).sum()), int((row == colours[1]).sum())
        if max(first, second) < 0.75 * (first + second):
            continue  # the blur between two stripes
        rows.append(first > second)
    runs = [len(list(run)) for _, run in itertools.groupby(rows)]
    return len(runs) >= 4 and all(3 <= run <= STRIPE_PIXELS + 2 for run in runs[1:-1])


def _front_and_back(labels: np.ndarray, colours: list[int]) -> list[Seen] | None:
    """Two objects of which one hides part of the other: in front lies the one that is whole, so that both fit best."""
    pairs = [pair for order in (colours, colours[::-1]) if (pair := _laid_over(labels, *order))]
    return max(pairs, key=lambda pair: pair[0])[1] if pairs else None


def _laid_over(labels: np.ndarray, front_index: int, back_index: int) -> tuple[float, list[Seen]] | None:
    """How well the first colour's object in front of the second's explains what is seen, and the two."""
    names = list(COLOURS)
    front_mask, back_mask = labels == front_index, labels == back_index
    shape, _, at, front_overlap = _best(front_mask, np.zeros_like(front_mask), [_extent(front_mask)], ("solid",))
    if shape is None:
        return None
    front = Seen(frozenset({names[front_index]}), shape, "solid", *at, before=True)
    reach = 1 + 1.5 / front.half_extent  # the blur between the two says nothing either
    y, x = (_PIXELS[0] - front.y) / front.half_extent / reach, (_PIXELS[1] - front.x) / front.half_extent / reach
    hidden = filled(shape, "solid", x, y)
    visible = back_mask & ~hidden
    if not visible.any():
        return None
    shape, _, at, back_overlap = _best(visible, hidden, _places(visible), ("solid",))
    if shape is None:
        return None
    return front_overlap + back_overlap, [front, Seen(frozenset({names[back_index]}), shape, "solid", *at, behind=True)]


def _places(mask: np.ndarray) -> list[tuple[float, float, float]]:
    """Where an object may lie of which the rest is hidden: from its visible extent on, to any side on which it may go on."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    side = max(right - left, bottom - top)
    places = []
    for longer in range(0, 14, 2):
        extent = side + longer
        for x0, y0 in itertools.product({left, right - extent}, {top, bottom - extent}):
            places.append((x0 + extent / 2, y0 + extent / 2, extent / 2))
    return places


def _described(one: Seen) -> tuple[frozenset[str], str | None, str]:
    return one.colours, one.shape, one.fill


def _asked(thing: Thing) -> tuple[frozenset[str], str | None, str]:
    return frozenset({thing.colour, thing.second} - {None}), thing.shape, thing.fill  # type: ignore[arg-type]


def _is(one: Seen, thing: Thing) -> bool:
    """Whether an object is what a caption says of it."""
    if _described(one) != _asked(thing):
        return False
    if thing.size and (one.half_extent > LARGE_HALF_EXTENT_PIXELS) != (thing.size == "large"):
        return False
    return thing.position is None or _lies(one, thing.position)


def _lies(one: Seen, position: str) -> bool:
    dx, dy = one.x - SIZE_PIXELS / 2, one.y - SIZE_PIXELS / 2
    if position == "centre":
        return max(abs(dx), abs(dy)) < OFF_CENTRE_PIXELS
    vertical, horizontal = position.split()
    right, down = (1 if horizontal == "right" else -1), (1 if vertical == "lower" else -1)
    return min(right * dx, down * dy) > OFF_CENTRE_PIXELS


def _arranged(order: tuple[Seen, ...], scene: Scene) -> bool:
    if scene.relation != IN_FRONT and any(one.before or one.behind for one in order):
        return False  # things that a caption does not lay over one another
    if scene.relation is None:
        return True
    a, b = order[:2]
    if scene.relation == IN_FRONT:
        return a.before and b.behind
    along, across = offsets(a, b, scene.relation)
    return along > MIN_OFFSET_PIXELS and along > across
