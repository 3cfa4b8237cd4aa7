from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from exporters.errors import ExportError, InputError
from exporters.guidance import Guidance
from exporters.layouts.sampling import Sampling, idle_steps, plan_sampling
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers.student_files import edit_json


def test_students_own_sigmas() -> None:
    sampling = plan_sampling(open_student(), 64, 64)
    # Shift 3 of s: 3 s / (1 + 2 s).
    assert sampling.sigmas == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0))
    assert sampling.timesteps == pytest.approx((1000, 900, 750, 500))
    assert sampling.method == "euler"


def test_number_of_steps_is_diffusers_grid(students: dict[str, Student]) -> None:
    sampling = plan_sampling(students["tiny"], 512, 512, steps=4)
    assert sampling.sigmas == pytest.approx((1.0, 0.8577, 0.6022, 0.00893, 0.0), abs=1e-4)


def idle(student: Student, steps: int | None = None, sigmas: tuple[float, ...] | None = None) -> str:
    return idle_steps(student, 64, 64, plan_sampling(student, 64, 64, steps, sigmas))


def test_a_step_that_hardly_moves_is_told_with_the_grid_that_does_not() -> None:
    assert idle(open_student(), 2) == (
        "of 2 steps (sigmas 1, 0.008929, 0), step 2 (0.89 %) hardly moves from noise to picture; "
        "--sigmas 1,0.5 (before the shift) makes every step count (sigmas 1, 0.75, 0)"
    )
    assert "--sigmas 1,0.6667,0.3333 (" in idle(open_student(), 3)
    assert "step 1 (0.68 %) and step 3 (1.5 %) hardly move from" in idle(open_student(), sigmas=(1.0, 0.98, 0.005))


@pytest.mark.parametrize(
    ("steps", "sigmas"),
    [(None, None), (1, None), (None, (1.0, 0.5)), (None, (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)), (50, None)],
    ids=["its own", "one step", "given", "eight", "steps that are small in any grid"],
)
def test_steps_that_move_are_no_matter(steps: int | None, sigmas: tuple[float, ...] | None) -> None:
    assert idle(open_student(), steps, sigmas) == ""


def test_a_single_step_from_near_the_end() -> None:
    assert "step 1 (2.9 %) hardly moves" in idle(open_student(), sigmas=(0.01,))


def test_a_long_schedule_is_told_in_brief() -> None:
    sigmas = (*(1 - i / 1000 for i in range(30)), 0.5)
    assert re.fullmatch(
        r"of 31 steps, step 1 \(.* %\), step 2 \(.* %\), step 3 \(.* %\) and 26 more hardly move from noise to picture; "
        r"an even grid from 1 to 1/31 \(before the shift\) makes every step count",
        idle(open_student(), sigmas=sigmas),
    )


def test_the_other_grid_is_shifted_for_the_size(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "scheduler/scheduler_config.json", use_dynamic_shifting=True)
    student = open_student(tiny_folder)
    told = [idle_steps(student, size, size, plan_sampling(student, size, size, 2)) for size in (64, 1024)]
    assert all("--sigmas 1,0.5 (" in text for text in told)
    assert told[0] != told[1]


def test_steps_win_over_the_students_sigmas() -> None:
    assert len(plan_sampling(open_student(), 64, 64, steps=2).timesteps) == 2


def test_given_sigmas_win(students: dict[str, Student]) -> None:
    assert plan_sampling(students["tiny"], 64, 64, sigmas=(1.0, 0.5)).sigmas == pytest.approx((1.0, 0.75, 0.0))


def test_dynamic_shift_depends_on_the_size(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "scheduler/scheduler_config.json", use_dynamic_shifting=True)
    student = open_student(tiny_folder)
    small, large = (plan_sampling(student, size, size, steps=4).sigmas for size in (64, 1024))
    assert small[1] < large[1]


def test_stochastic_schedulers_are_renoised(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "scheduler/scheduler_config.json", stochastic_sampling=True)
    student = open_student(tiny_folder)
    assert plan_sampling(student, 64, 64).method == "renoise"
    assert plan_sampling(student, 64, 64, method="euler").method == "euler"


@pytest.mark.parametrize(
    ("steps", "sigmas"),
    [
        (None, (1.0, 1.0)),
        (None, (0.5, 1.0)),
        (None, (1.0, 0.0)),
        (None, (1.5,)),
        (3, (1.0, 0.5)),
        (None, (float("nan"),)),
    ],
    ids=str,
)
def test_wrong_sigmas_are_refused(steps: int | None, sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ExportError, match="sigmas"):
        plan_sampling(open_student(), 64, 64, steps, sigmas)


def test_endless_schedules_are_refused() -> None:
    with pytest.raises(ExportError, match=r"steps: too many \(expected at most 1000, got 100000\)"):
        plan_sampling(open_student(), 64, 64, steps=100_000)


def test_a_shift_that_no_float_holds(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "scheduler/scheduler_config.json", use_dynamic_shifting=True, base_shift=1e30)
    with pytest.raises(ExportError, match=r"scheduler_config.json: math range error"):
        plan_sampling(open_student(tiny_folder), 32, 48)


def test_guidance_is_what_is_asked_for_else_the_students(tiny_folder: Path) -> None:
    said = {"guidance_scale": 4.5, "negative_prompt": "blurred", "guidance_interval": [0.1, 0.9], "skip_guidance_layers": [0]}
    (tiny_folder / "student.json").write_text(json.dumps(said))
    student = open_student(tiny_folder)
    own = plan_sampling(student, 64, 64, steps=10).guidance
    assert own == Guidance(4.5, "blurred", (0.1, 0.9), (0,))
    assert plan_sampling(student, 64, 64, guidance={"guidance_scale": 2.0}).guidance == replace(own, guidance_scale=2.0)
    assert not plan_sampling(student, 64, 64, guidance={"guidance_scale": 1.0}).guidance.on
    layers = student.configs["transformer"]["num_layers"]
    with pytest.raises(
        InputError, match=rf"skip_guidance_layers: wrong \(expected .* from 0 to {layers - 1}, got \({layers},\)\)"
    ):
        plan_sampling(student, 64, 64, guidance={"skip_guidance_layers": (layers,)})


def test_passes_are_counted() -> None:
    """Of five steps: the first is not guided; of those before 3 of 5, all but the first leave layers out."""
    sigmas = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
    guidance = Guidance(3.0, guidance_interval=(0.1, 0.9), skip_guidance_layers=(1,), skip_layer_guidance_stop=0.6)
    assert Sampling("euler", sigmas, (1.0,) * 5, guidance).passes == 5 + 4 + 2
    assert Sampling("euler", sigmas, (1.0,) * 5).passes == 5
