from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from deploy.runtime.sampler import combined, euler, sample
from exporters.errors import ExportError, InputError
from exporters.guidance import Guidance
from exporters.layouts.sampling import Sampling, idle_steps, plan_sampling
from exporters.layouts.schedule import Schedule
from exporters.student.open import open_student
from exporters.student.scheduler import as_sampled
from exporters.student.student import Student
from tests.helpers.student_files import edit_json


def test_students_own_sigmas() -> None:
    sampling = plan_sampling(open_student(), 64, 64)
    # Shift 3 of s: 3 s / (1 + 2 s).
    assert sampling.sigmas == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0))
    assert sampling.timesteps == pytest.approx((1000, 900, 750, 500))
    assert sampling.method == "euler"


def test_number_of_steps_is_diffusers_grid(students: dict[str, Student]) -> None:
    sampling = plan_sampling(students["tiny"], 512, 512, Schedule(steps=4))
    assert sampling.sigmas == pytest.approx((1.0, 0.8577, 0.6022, 0.00893, 0.0), abs=1e-4)


def idle(student: Student, steps: int | None = None, sigmas: tuple[float, ...] | None = None) -> str:
    return idle_steps(student, 64, 64, plan_sampling(student, 64, 64, Schedule(steps, sigmas)))


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
    told = [idle_steps(student, size, size, plan_sampling(student, size, size, Schedule(2))) for size in (64, 1024)]
    assert all("--sigmas 1,0.5 (" in text for text in told)
    assert told[0] != told[1]


def test_steps_win_over_the_students_sigmas() -> None:
    assert len(plan_sampling(open_student(), 64, 64, Schedule(2)).timesteps) == 2


def test_given_sigmas_win(students: dict[str, Student]) -> None:
    assert plan_sampling(students["tiny"], 64, 64, Schedule(sigmas=(1.0, 0.5))).sigmas == pytest.approx((1.0, 0.75, 0.0))


def test_dynamic_shift_depends_on_the_size(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "scheduler/scheduler_config.json", use_dynamic_shifting=True)
    student = open_student(tiny_folder)
    small, large = (plan_sampling(student, size, size, Schedule(4)).sigmas for size in (64, 1024))
    assert small[1] < large[1]


def test_stochastic_schedulers_are_renoised(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "scheduler/scheduler_config.json", stochastic_sampling=True)
    student = open_student(tiny_folder)
    assert plan_sampling(student, 64, 64).method == "renoise"
    assert plan_sampling(student, 64, 64, Schedule(sampler="euler")).method == "euler"


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
        plan_sampling(open_student(), 64, 64, Schedule(steps, sigmas))


def test_endless_schedules_are_refused() -> None:
    with pytest.raises(ExportError, match=r"steps: too many \(expected at most 1000, got 100000\)"):
        plan_sampling(open_student(), 64, 64, Schedule(100_000))


def test_a_shift_that_no_float_holds(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "scheduler/scheduler_config.json", use_dynamic_shifting=True, base_shift=1e30)
    with pytest.raises(ExportError, match=r"scheduler_config.json: math range error"):
        plan_sampling(open_student(tiny_folder), 32, 48)


def test_guidance_is_what_is_asked_for_else_the_students(tiny_folder: Path) -> None:
    said = {"guidance_scale": 4.5, "negative_prompt": "blurred", "guidance_interval": [0.1, 0.9], "skip_guidance_layers": [0]}
    (tiny_folder / "student.json").write_text(json.dumps(said))
    student = open_student(tiny_folder)
    own = plan_sampling(student, 64, 64, Schedule(10)).guidance
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


def test_a_shift_in_place_of_the_schedulers(tiny_folder: Path) -> None:
    for config in ({}, {"use_dynamic_shifting": True}):
        edit_json(tiny_folder / "scheduler/scheduler_config.json", **config)
        got = plan_sampling(open_student(tiny_folder), 64, 64, Schedule(sigmas=(1.0, 0.5), shift=5.0))
        expected: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
        expected.set_timesteps(sigmas=[1.0, 0.5])
        assert (got.sigmas, got.timesteps) == (tuple(expected.sigmas.tolist()), tuple(expected.timesteps.tolist()))


@pytest.mark.parametrize("last", [(), (0.0,)])
def test_sigmas_after_the_shift_are_taken_as_they_are(last: tuple[float, ...], students: dict[str, Student]) -> None:
    """As SwD publishes them, with the last 0 or without."""
    published = (1.0, 0.9454, 0.7904, 0.6022)
    got = plan_sampling(students["tiny"], 64, 64, Schedule(sigmas_after_shift=(*published, *last)))
    assert got.sigmas == pytest.approx((*published, 0.0), abs=1e-7)
    assert got.timesteps == pytest.approx([1000 * sigma for sigma in published], abs=1e-4)


def test_timesteps_are_diffusers(students: dict[str, Student]) -> None:
    """Noise levels that are not given beside them follow from them, shifted, while the transformer is told them as they are."""
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for lists in ({"timesteps": [1000.0, 600.0]}, {"timesteps": [900.0, 100.0], "sigmas": [1.0, 0.4]}):
        got = plan_sampling(students["tiny"], 64, 64, Schedule(**lists, shift=3.0))  # type: ignore[arg-type]
        scheduler.set_timesteps(**lists)
        assert (got.sigmas, got.timesteps) == (tuple(scheduler.sigmas.tolist()), tuple(lists["timesteps"]))


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"flow_shift": 6.0}, 4),  # as TDM's students are drawn
        ({"flow_shift": 3.0, "solver_order": 3, "solver_type": "heun"}, 20),
        ({"flow_shift": 1.0, "solver_order": 1, "lower_order_final": False}, 3),
    ],
)
def test_a_multistep_solver_is_diffusers(config: dict[str, Any], steps: int, tiny_folder: Path) -> None:
    """Its levels, and what its steps make of velocities that depend on latents and time; fp32 rounds numbers near 3 to 1e-6."""
    stored = {
        "_class_name": "DPMSolverMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        **config,
    }
    (tiny_folder / "scheduler/scheduler_config.json").write_text(json.dumps(stored))
    sampling = plan_sampling(open_student(tiny_folder), 64, 64, Schedule(steps))
    scheduler: Any = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **config)
    scheduler.set_timesteps(steps)
    assert sampling.method == "dpmpp"
    assert sampling.sigmas == tuple(scheduler.sigmas.tolist())
    assert sampling.timesteps == tuple(map(float, scheduler.timesteps))
    start = np.random.default_rng(0).standard_normal(50, np.float32)

    def velocity(latents: Any, step: int) -> Any:
        return 0.3 * latents + (sampling.timesteps[step] / 1000) ** 2

    got = sample(combined(velocity, sampling.sigmas, sampling.combinations, start), start, range(steps))
    latents = torch.from_numpy(start)
    for step, timestep in enumerate(scheduler.timesteps):
        latents = scheduler.step(velocity(latents, step), timestep, latents, return_dict=False)[0]
    np.testing.assert_allclose(got, latents.numpy(), rtol=0, atol=1e-5)
    by_euler = sample(euler(velocity, sampling.sigmas), start, range(steps))
    assert np.abs(by_euler - got).max() > 1e-3 or config.get("solver_order") == 1  # which is Euler, by another formula


def test_a_solver_takes_sigmas_and_a_shift_too(students: dict[str, Student]) -> None:
    """Of a student whose scheduler is another, with that one's shift or a given one."""
    student, sigmas = students["tiny"], (1.0, 0.75, 0.5)
    own = student.configs["scheduler"]["shift"]
    for shift in (None, 2.0):
        got = plan_sampling(student, 64, 64, Schedule(sigmas=sigmas, sampler="dpmpp", shift=shift))
        factor = shift or own
        assert got.sigmas[:-1] == pytest.approx([factor * s / (1 + (factor - 1) * s) for s in sigmas], abs=1e-6)
        assert [len(row) for row in got.combinations] == [2, 3, 4]
    back = as_sampled(as_sampled(student, "dpmpp", None), "euler", None)
    assert plan_sampling(back, 64, 64, Schedule(3)).sigmas == plan_sampling(student, 64, 64, Schedule(3)).sigmas


@pytest.mark.parametrize("name", ["FlowMatchLCMScheduler", "FlashFlowMatchEulerDiscreteScheduler"])
def test_other_names_of_a_scheduler_that_renoises(name: str, tiny_folder: Path) -> None:
    edit_json(tiny_folder / "scheduler/scheduler_config.json", _class_name=name)
    student = open_student(tiny_folder)
    assert plan_sampling(student, 64, 64).method == "renoise"
    assert any(name in note and "renoise" in note for note in student.notes)


def test_sid_steps_as_its_own_pipeline_does(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "model_index.json", _class_name="SiDSD3Pipeline")
    (tiny_folder / "student.json").unlink()
    student = open_student(tiny_folder)
    got = plan_sampling(student, 64, 64)
    assert (got.method, got.sigmas, got.timesteps) == ("renoise", (1.0, 0.75, 0.5, 0.25, 0.0), (1000.0, 750.0, 500.0, 250.0))
    assert any("SiDSD3Pipeline" in note for note in student.notes)
    (tiny_folder / "student.json").write_text('{"steps": 2}')
    assert plan_sampling(open_student(tiny_folder), 64, 64).sigmas == (1.0, 0.5, 0.0)


def test_the_students_own_schedule(tiny_folder: Path) -> None:
    said = {"sigmas_after_shift": [1.0, 0.8, 0.3], "timesteps": [1000, 700, 200], "sampler": "renoise"}
    (tiny_folder / "student.json").write_text(json.dumps(said))
    student = open_student(tiny_folder)
    own = plan_sampling(student, 64, 64)
    assert (own.method, own.timesteps) == ("renoise", (1000.0, 700.0, 200.0))
    assert own.sigmas == pytest.approx((1.0, 0.8, 0.3, 0.0))
    assert len(plan_sampling(student, 64, 64, Schedule(5, sampler="euler")).timesteps) == 5  # its lists are for three
    given = plan_sampling(student, 64, 64, Schedule(sigmas_after_shift=(1.0, 0.5, 0.2)))
    assert given.timesteps == pytest.approx((1000.0, 500.0, 200.0))  # its timesteps belong to its own levels


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Schedule(sigmas=(1.0,), sigmas_after_shift=(1.0,)), "sigmas: are given before the shift and after it"),
        (Schedule(sigmas_after_shift=(1.0,), shift=2.0), "shift: does nothing to sigmas that are given after it"),
        (Schedule(shift=0.0), r"shift: wrong \(expected a number above 0"),
        (Schedule(shift=float("nan")), "shift: wrong"),
        (Schedule(timesteps=(1001.0,)), r"timesteps: wrong \(expected numbers that fall, from at most 1000, to above 0"),
        (Schedule(2, timesteps=(900.0,)), r"timesteps: not one for each step \(expected 2, got 1\)"),
        (Schedule(sigmas=(1.0, 0.5), timesteps=(900.0,)), r"timesteps: not one for each step \(expected 2, got 1\)"),
        (Schedule(sigmas_after_shift=(0.0,)), "sigmas_after_shift: wrong"),
    ],
    ids=str,
)
def test_wrong_schedules_are_refused(wanted: Schedule, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        plan_sampling(open_student(), 64, 64, wanted)


def test_a_solver_of_no_flow_is_refused(tiny_folder: Path) -> None:
    stored = {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "epsilon", "algorithm_type": "sde-dpmsolver++"}
    (tiny_folder / "scheduler/scheduler_config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError) as caught:
        open_student(tiny_folder)
    told = str(caught.value)
    assert "scheduler: use_flow_sigmas: missing" in told
    assert "scheduler: prediction_type: wrong" in told
    assert "scheduler: algorithm_type: wrong" in told
