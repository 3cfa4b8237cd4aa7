"""A stage's curve is of what it recorded, against the time of all its processes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from benchmarks.studies.distilled.curves import POINTS, curve, learning_curves


def test_medians_of_equally_many_steps_at_the_minutes_that_they_end() -> None:
    steps = [{"step": n, "loss": float(n % 4 == 0), "cpu_seconds": 0.5} for n in range(4 * POINTS)]
    got = curve(steps, processes=2)
    assert got is not None
    name, (minutes, values) = got
    assert name == "loss"
    assert len(values) == POINTS
    assert not values.any()  # one step in four is no median
    assert minutes[-1] == pytest.approx(2 * 0.5 * len(steps) / 60)
    assert np.allclose(np.diff(minutes), 4 / 60)


def test_steps_that_record_something_else_are_left_out() -> None:
    steps = [{"step": 0, "fake_loss": 9.0, "cpu_seconds": 60.0}, {"step": 1, "gap": 0.5, "loss": 3.0, "cpu_seconds": 60.0}]
    got = curve(steps, processes=1)
    assert got is not None
    assert (got[0], got[1][0].tolist(), got[1][1].tolist()) == ("gap", [2.0], [0.5])


def test_nothing_is_drawn_of_a_stage_that_recorded_nothing() -> None:
    assert curve([], processes=1) is None
    assert curve([{"step": 0, "fake_loss": 9.0, "cpu_seconds": 60.0}], processes=1) is None


def test_a_panel_for_each_stage() -> None:
    image = pytest.importorskip("PIL.Image")
    one = ("loss", (np.array([1.0, 2.0]), np.array([0.5, 0.25])))
    sizes = [image.open(BytesIO(learning_curves({f"stage {n}": one for n in range(count)}))).size for count in (1, 4, 5)]
    assert sizes[0][0] < sizes[1][0] == sizes[2][0]
    assert sizes[0][1] == sizes[1][1] < sizes[2][1]
