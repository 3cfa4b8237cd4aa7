"""The client's schedule that is nearest to a student's, and how near its pictures come."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.layouts.sampling import Sampling, plan_sampling
from exporters.layouts.spec import GraphOptions
from exporters.reference import swift_schedule
from exporters.reference.swift_schedule import client_schedule, client_sigmas, nearest_schedules
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers.student_files import edit_json


def plan(student: Student, steps: int | None = None) -> tuple[GraphOptions, Sampling]:
    sampling = plan_sampling(student, 64, 64, steps)
    return GraphOptions("swift", 64, 64, sampling.timesteps, 16, keep_t5=False, max_sequence_length=77), sampling


@pytest.mark.parametrize("steps", [2, 3, 4, 8, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0, 1.4142, 17.5])
def test_diffusers_own_grid_is_the_clients(steps: int, shift: float, tiny_folder: Path) -> None:
    """With as many steps and the scheduler's shift, whether it has two digits or not."""
    edit_json(tiny_folder / "scheduler/scheduler_config.json", shift=shift)
    sampling = plan_sampling(open_student(tiny_folder), 64, 64, steps)
    nearest = nearest_schedules(sampling.sigmas, shift)[0]
    assert (nearest.steps, nearest.shift) == (steps, shift)
    assert nearest.error < 1e-5
    assert client_sigmas(steps, shift) == pytest.approx(sampling.sigmas[:-1], abs=1e-5)


def test_a_single_step_takes_two_of_the_clients() -> None:
    """It divides by one step less than it is told."""
    [only] = nearest_schedules((1.0, 0.0))
    assert (only.steps, only.error) == (2, 0.0)


def test_a_shift_that_depends_on_the_size(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "scheduler/scheduler_config.json", use_dynamic_shifting=True)
    sampling = plan_sampling(open_student(tiny_folder), 1024, 1024, 4)
    nearest = nearest_schedules(sampling.sigmas)[0]
    assert nearest.steps == 4
    assert nearest.error < 0.007  # of the last step, which shifts once in diffusers and twice in the client


@pytest.mark.parametrize(("steps", "told", "least"), [(None, 5, 55), (3, 3, 100)], ids=["its own", "diffusers' grid"])
def test_pictures_of_the_nearest(steps: int | None, told: int, least: float) -> None:
    """59 and 134 dB seen; with the other number of steps under 40."""
    student = open_student()
    schedule = client_schedule(student, *plan(student, steps))
    assert schedule.steps == told
    assert schedule.psnr_db is not None
    assert schedule.psnr_db >= least


def test_where_both_are_as_far_the_better_pictures_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sigmas alone would take the other one."""
    student = open_student()
    options, sampling = plan(student)
    monkeypatch.setattr(swift_schedule, "FAR", 1e6)
    nearest = nearest_schedules(sampling.sigmas)
    monkeypatch.setattr(swift_schedule, "nearest_schedules", lambda *_: nearest[::-1])
    schedule = client_schedule(student, options, sampling)
    assert schedule.steps == 5


@pytest.mark.parametrize("costly", [False, True])
def test_students_that_take_minutes(costly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    student = open_student()
    monkeypatch.setattr(swift_schedule, "MOST_OPERATIONS", 1e6)
    schedule = client_schedule(student, *plan(student), costly)
    assert (schedule.psnr_db is not None) == costly
    assert (schedule.steps, schedule.shift) == (5, 2.97)
