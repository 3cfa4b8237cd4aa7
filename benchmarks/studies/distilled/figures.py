"""What verdicts come to: shares, differences, how various pictures are, how sharp."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from benchmarks.quality.paired import PairedDifference, paired_difference
from benchmarks.quality.pictures import wilson_interval
from distillation.world.diversity import Variety, distance

__all__ = ["MARGIN", "Diversity", "Scored", "Share", "diversity", "scored", "seed_spread", "variety"]

MARGIN = 0.03
"""What a student may stay behind its teacher."""


class Share(msgspec.Struct, frozen=True):
    """A share of right pictures.

    Attributes:
        count: pictures.
        share: of right ones.
        low: lower end of its 95 % interval (Wilson).
        high: upper end.
    """

    count: int
    share: float
    low: float
    high: float


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """One subject's verdicts on captions that all were asked.

    Attributes:
        name: of the subject.
        steps: of its sampler; 0 for the renderer.
        whole: of all captions.
        groups: of each kind of caption, and of those past CLIP's window and within it.
        against: the paired difference from the reference; none of the reference itself.
        groups_against: the same within groups.
        stray: share of pixels near no entry of the palette, the mean over pictures.
        std: of latents, the mean over pictures; none for the renderer.
    """

    name: str
    steps: int
    whole: Share
    groups: dict[str, Share]
    against: PairedDifference | None
    groups_against: dict[str, PairedDifference]
    stray: float
    std: float | None


class Diversity(msgspec.Struct, frozen=True, kw_only=True):
    """How various one subject's right pictures are.

    Attributes:
        name: of the subject.
        right: of the pictures that tell.
        law: Kolmogorov-Smirnov distance of centres and sizes to the renderer's law, by kind and ``all``; none where nothing is
            right.
        seeds: the same between its own pictures of two seeds.
        spread: how far things lie apart in pictures of one caption and two seeds, over the same of the renderer.
    """

    name: str
    right: int
    law: dict[str, float] | None
    seeds: float | None
    spread: float | None


def _share(right: np.ndarray) -> Share:
    low, high = wilson_interval(int(right.sum()), right.size)
    return Share(right.size, float(right.mean()), low, high)


def scored(name: str, steps: int, verdicts: np.ndarray, groups: Mapping[str, np.ndarray], reference: np.ndarray | None) -> Scored:
    """The figures of one subject.

    Args:
        name: of the subject.
        steps: of its sampler.
        verdicts: records.
        groups: masks ``[captions]`` by name; empty ones are left out.
        reference: the reference's records of the same captions and noise; none for the reference.
    """
    right = verdicts["right"]
    told = {group: mask for group, mask in groups.items() if mask.any()}
    std = verdicts["std"]
    return Scored(
        name=name,
        steps=steps,
        whole=_share(right),
        groups={group: _share(right[mask]) for group, mask in told.items()},
        against=None if reference is None else paired_difference(reference["right"], right),
        groups_against={}
        if reference is None
        else {group: paired_difference(reference["right"][mask], right[mask]) for group, mask in told.items()},
        stray=float(verdicts["stray"].mean()),
        std=None if np.isnan(std).any() else float(std.mean()),
    )


def variety(verdicts: np.ndarray, kinds: np.ndarray) -> Variety:
    """Centres and half extents of right pictures' things, as :mod:`distillation.world.diversity` compares them.

    Args:
        verdicts: records.
        kinds: of the captions.
    """
    by_kind = {}
    for kind in np.unique(kinds):
        rows = verdicts["places"][(kinds == kind) & verdicts["right"]].reshape(-1, 3)
        rows = rows[~np.isnan(rows[:, 0])]
        if len(rows):
            by_kind[str(kind)] = rows.astype(np.float64)
    return Variety(by_kind)


def seed_spread(first: np.ndarray, second: np.ndarray) -> float | None:
    """Mean distance in pixels between a thing's centres in pictures of one caption and two seeds; none where none are right.

    Args:
        first: records of one seed.
        second: of the same captions from other noise.
    """
    both = first["right"] & second["right"]
    apart = np.linalg.norm(first["places"][both][:, :, :2] - second["places"][both][:, :, :2], axis=-1)
    apart = apart[~np.isnan(apart)]
    return float(apart.mean()) if apart.size else None


def diversity(
    name: str, first: np.ndarray, second: np.ndarray | None, kinds: np.ndarray, law: np.ndarray, true_spread: float
) -> Diversity:
    """The figures of one subject.

    Args:
        name: of the subject.
        first: its records of one seed.
        second: of another, where there is one.
        kinds: of the captions.
        law: the renderer's records of the same captions.
        true_spread: the renderer's :func:`seed_spread`.
    """
    own = variety(first, kinds)
    other = Variety({}) if second is None else variety(second, kinds)
    spread = None if second is None else seed_spread(first, second)
    return Diversity(
        name=name,
        right=int(first["right"].sum()),
        law=distance(own, variety(law, kinds)) if own.by_kind else None,
        seeds=distance(own, other)["all"] if own.by_kind.keys() & other.by_kind.keys() else None,
        spread=None if spread is None else spread / true_spread,
    )
