"""Variety: true pictures are as various as true pictures, pictures that are all alike are not."""

from __future__ import annotations

import numpy as np
import pytest

from distillation.world.diversity import distance, measure, reference
from distillation.world.render import render
from distillation.world.scenes import sample

SCENES = sample(300, 0, ["single", "relation"])


def test_true_pictures_are_as_various_as_others() -> None:
    """Two samples of n: the statistic's 99 % point is 1.63 sqrt(2 / n), for the mean of three less."""
    got = distance(reference(SCENES, 1), reference(SCENES, 2))
    fewest = min(len(rows) for rows in reference(SCENES, 1).by_kind.values())
    assert set(got) == {"single", "relation", "all"}
    assert max(got.values()) < 1.63 * (2 / fewest) ** 0.5


def test_pictures_that_are_all_alike_are_seen() -> None:
    alike = measure(SCENES, (render(scene, 5) for scene in SCENES))  # always the same place
    assert distance(alike, reference(SCENES, 2))["single"] > 0.3


def test_one_size_too_small_is_seen() -> None:
    drawn = reference(SCENES, 1)
    for rows in drawn.by_kind.values():
        rows[:, 2] -= 1.5
    assert distance(drawn, reference(SCENES, 2))["all"] > distance(reference(SCENES, 1), reference(SCENES, 2))["all"] + 0.05


def test_pictures_differ_from_themselves_in_nothing() -> None:
    assert distance(reference(SCENES, 1), reference(SCENES, 1))["all"] == 0


def test_half_a_pixel_off_is_no_other_law() -> None:
    """Moved by half a pixel, uniform laws of 4, 4 and 2 pixels differ by 1/8, 1/8 and 1/4; unblurred, one of two sizes by 1/2."""
    drawn, true = reference(SCENES, 1), reference(SCENES, 2)
    before = distance(drawn, true)["all"]
    for kind in drawn.by_kind:
        drawn.by_kind[kind] += 0.5
    assert distance(drawn, true)["all"] < before + (1 / 8 + 1 / 8 + 1 / 4) / 3 + 0.02


def test_wrong_pictures_do_not_count() -> None:
    assert measure(SCENES[:5], [np.zeros((64, 64, 3))] * 5).by_kind == {}
    with pytest.raises(ValueError, match="no picture is right"):
        distance(measure([], []), reference(SCENES[:5], 0))
