"""The Swift client's levels, and how its steps become a student's own."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from exporters.errors import ExportError
from exporters.layouts.sampling import plan_sampling
from exporters.layouts.schedule import Schedule
from exporters.layouts.swift_schedule import SHIFT, TRAIN_STEPS, client_schedule, client_sigmas
from exporters.student.open import open_student
from tests.helpers.student_files import edit_json


@pytest.mark.parametrize("steps", [2, 3, 4, 8, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0, 1.4142, 17.5])
def test_diffusers_own_grid_is_the_clients(steps: int, shift: float, tiny_folder: Path) -> None:
    """With as many steps and the scheduler's shift: nothing is scaled then. diffusers' sigmas are of fp32: 1e-7 of a step."""
    edit_json(tiny_folder / "scheduler/scheduler_config.json", shift=shift)
    sampling = plan_sampling(open_student(tiny_folder), 64, 64, Schedule(steps))
    assert client_sigmas(steps, shift) == pytest.approx(sampling.sigmas[:-1], abs=1e-5)
    client = client_schedule(sampling.sigmas, shift)
    assert (client.steps, client.shift) == (steps, shift)
    assert client.scales == pytest.approx([1.0] * steps, abs=1e-3)


SCHEDULES = [(1.0, 0.9, 0.75, 0.5, 0.0), (1.0, 0.75, 0.0), (1.0, 0.99, 0.2, 0.0), (0.97, 0.4, 0.0), (1.0, 0.0)]


@pytest.mark.parametrize("shift", [None, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("sigmas", SCHEDULES, ids=str)
def test_the_clients_steps_become_the_students(sigmas: tuple[float, ...], shift: float | None) -> None:
    """Velocities that know nothing of each other, so that a wrong length anywhere shows: both ways end at the same latents."""
    client = client_schedule(sigmas, shift)
    assert client.shift == (shift or SHIFT)
    assert client.steps == max(2, len(sigmas) - 1)
    velocities = np.random.default_rng(0).standard_normal((client.steps, 16))
    levels = [timestep / TRAIN_STEPS for timestep in client.timesteps]
    assert levels == list(client_sigmas(client.steps, client.shift))
    own = other = np.zeros(16)
    for i, (level, following) in enumerate(itertools.pairwise((*levels, 0.0))):
        other = other + (following - level) * client.scales[i] * velocities[i]
        if i < len(sigmas) - 1:
            own = own + (sigmas[i + 1] - sigmas[i]) * velocities[i]
        np.testing.assert_allclose(other, own, rtol=0, atol=1e-12)


def test_levels_that_cannot_be_told_apart() -> None:
    sigmas = np.linspace(1, 0, 401)
    with pytest.raises(ExportError, match=r"steps: the Swift client's levels lie too close .*expected more than 1 of 1000"):
        client_schedule(sigmas.tolist(), 3.0)
    assert client_schedule(np.linspace(1, 0, 51).tolist(), 3.0).tolerance == 1.0


def test_the_tolerance_is_less_than_half_of_the_least_distance() -> None:
    client = client_schedule(np.linspace(1, 0, 251).tolist(), 3.0)
    apart = min(a - b for a, b in itertools.pairwise(client.timesteps))
    assert 0 < client.tolerance < min(1.0, apart / 2)
