"""Scenes and their captions.

Every caption of :mod:`distillation.shape_world` is one of this world's too. Beside them::

    a large hollow red circle on a white background
    a striped red and blue square on a gray background
    a green cross in the upper left on a black background
    a red circle in front of a blue square on a white background
    a red circle left of a blue square and a green cross in the lower right on a gray background

The last kind is longer than the sixteen tokens of the CLIP encoders: what it says after them only T5 reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from distillation.shape_world import BACKGROUNDS, COLOURS, COUNTS, RELATIONS, SHAPES

__all__ = ["FILLS", "KINDS", "POSITIONS", "Kind", "Scene", "Thing", "parse", "sample"]

Kind = Literal["single", "relation", "counting", "textured", "placed", "overlap", "long"]
#: Kinds of scenes, and the share of each that students learn from: counting is the weak kind, so it gets more.
KINDS: dict[Kind, float] = {
    "single": 0.12,
    "relation": 0.16,
    "counting": 0.26,
    "textured": 0.16,
    "placed": 0.1,
    "overlap": 0.1,
    "long": 0.1,
}
OLD_KINDS: tuple[Kind, ...] = ("single", "relation", "counting")
FILLS = ("solid", "hollow", "striped")
HOLLOW_SHAPES = ("circle", "square", "triangle")  # a cross has no room for a hole
POSITIONS = ("upper left", "upper right", "lower left", "lower right", "centre")
IN_FRONT = "in front of"


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        colour: of the object; of every other stripe where it is striped.
        shape: one of :data:`distillation.shape_world.SHAPES`.
        size: ``small`` or ``large`` where the caption says so.
        fill: solid, hollow or striped.
        second: colour of the other stripes.
        position: one of :data:`POSITIONS` where the caption says so.
    """

    colour: str
    shape: str
    size: str | None = None
    fill: str = "solid"
    second: str | None = None
    position: str | None = None

    def __str__(self) -> str:
        colours = f"{self.colour} and {self.second}" if self.second else self.colour
        words = ["a", self.size, None if self.fill == "solid" else self.fill, colours, self.shape]
        place = f" in the {self.position}" if self.position else ""
        return " ".join(word for word in words if word) + place


@dataclass(frozen=True)
class Scene:
    """What a caption says.

    Attributes:
        kind: of scene.
        things: its objects, in the caption's order; those of a counting scene are equal.
        background: name of the background.
        relation: of the first object to the second, or ``in front of``.
    """

    kind: Kind
    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    def __str__(self) -> str:
        first = self.things[0]
        if self.kind == "counting":
            number = next(word for word, count in COUNTS.items() if count == len(self.things))
            what = f"{number} {first.colour} {first.shape}{'es' if first.shape == 'cross' else 's'}"
        else:
            what = str(first) if self.relation is None else f"{first} {self.relation} {self.things[1]}"
            if self.kind == "long":
                what += f" and {self.things[2]}"
        return f"{what} on a {self.background} background"


_COLOUR, _SHAPE = "|".join(COLOURS), "|".join(SHAPES)
_THING = re.compile(
    rf"a(?: (?P<size>small|large))?(?: (?P<fill>hollow|striped))? (?P<colour>{_COLOUR})(?: and (?P<second>{_COLOUR}))?"
    rf" (?P<shape>{_SHAPE})(?: in the (?P<position>{'|'.join(POSITIONS)}))?"
)
_COUNTING = re.compile(rf"({'|'.join(COUNTS)}) ({_COLOUR}) (circles|squares|triangles|crosses)")
_RELATION = re.compile(rf"(.+) ({'|'.join((*RELATIONS, IN_FRONT))}) (a .+?)(?: and (a .+))?")


def parse(text: str) -> Scene:
    """Read a caption.

    Raises:
        ValueError: it is not one of this world's.

    >>> parse("a striped red and blue circle on a gray background").things[0].second
    'blue'
    """
    what, _, where = text.rpartition(" on a ")
    background = where.removesuffix(" background")
    if background not in BACKGROUNDS or not where.endswith(" background"):
        raise ValueError(f"no background of this world in {text!r}")
    scene = _parse_objects(what, background)
    if scene is None or str(scene) != text:
        raise ValueError(f"not a caption of this world: {text!r}")
    return scene


def _parse_objects(what: str, background: str) -> Scene | None:
    if match := _COUNTING.fullmatch(what):
        shape = match[3].removesuffix("es") if match[3] == "crosses" else match[3].removesuffix("s")
        return Scene("counting", (Thing(match[2], shape),) * COUNTS[match[1]], background)
    if match := _RELATION.fullmatch(what):
        things = [_parse_thing(part) for part in (match[1], match[3], match[4]) if part]
        if None in things:
            return None
        kind: Kind = "long" if match[4] else "overlap" if match[2] == IN_FRONT else "relation"
        return Scene(kind, tuple(thing for thing in things if thing), background, match[2])
    thing = _parse_thing(what)
    if thing is None:
        return None
    kind = "textured" if thing.fill != "solid" else "placed" if thing.position else "single"
    return Scene(kind, (thing,), background)


def _parse_thing(text: str) -> Thing | None:
    match = _THING.fullmatch(text)
    if match is None or (match["fill"] == "striped") != bool(match["second"]):
        return None
    return Thing(match["colour"], match["shape"], match["size"], match["fill"] or "solid", match["second"], match["position"])


def sample(count: int, seed: int, kinds: Sequence[Kind] = tuple(KINDS)) -> list[Scene]:
    """Scenes at random, in the shares of :data:`KINDS` (of those that are asked for)."""
    rng = np.random.default_rng(seed)
    shares = np.array([KINDS[kind] for kind in kinds])
    return [_draw(kinds[index], rng) for index in rng.choice(len(kinds), count, p=shares / shares.sum())]


def _draw(kind: Kind, rng: np.random.Generator) -> Scene:
    def pick(options: Sequence[str]) -> str:
        return str(options[int(rng.integers(len(options)))])

    def thing(**said: str | None) -> Thing:
        return Thing(pick(list(COLOURS)), pick(SHAPES), **said)  # type: ignore[arg-type]

    background = pick(list(BACKGROUNDS))
    things: tuple[Thing, ...]
    relation = pick(RELATIONS) if kind in ("relation", "long") else IN_FRONT if kind == "overlap" else None
    if kind == "single":
        things = (thing(size=pick(("small", "large"))),)
    elif kind == "counting":
        things = (thing(),) * COUNTS[pick(list(COUNTS))]
    elif kind == "placed":
        things = (thing(position=pick(POSITIONS)),)
    elif kind == "relation":
        things = (thing(), thing())
    elif kind == "textured":
        colour, second = rng.permutation(list(COLOURS))[:2].tolist()
        striped = Thing(colour, pick(SHAPES), None, "striped", second)
        hollow = Thing(colour, pick(HOLLOW_SHAPES), pick(("small", "large")), "hollow")
        things = (striped,) if rng.random() < 0.5 else (hollow,)
    else:
        first, second, third = (Thing(colour, pick(SHAPES)) for colour in rng.permutation(list(COLOURS))[:3].tolist())
        things = (first, second)
        if kind == "long":
            things += (replace(third, position=pick(POSITIONS[:4])),)
    return Scene(kind, things, background, relation)
