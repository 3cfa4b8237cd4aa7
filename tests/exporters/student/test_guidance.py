from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporters.student.guidance import guidance_note, names_few_steps, names_of
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT

FEW = [
    "stable-diffusion-3.5-large-turbo",
    "sd3.5mediumturbo",
    "SD3.5-Flash",
    "Hyper-SD3",
    "sd3_lcm",
    "TDM-SD3",
    "SiD-DiT",
    "SiD_DiT",
    "swd-medium",
    "sd3-dmd2",
    "SD3-Lightning",
    "draws in 4 steps",
    "an 8-step student",
    "4-step",
    "4steps",
    "4/8-step",
    "four steps",
    "single-step",
    "num_inference_steps=4",
    "a few-step model",
    "guidance-distilled",
]
OTHERS = [
    "stable-diffusion-3.5-medium",
    "student",
    "num_inference_steps=28, guidance_scale=4.5",
    "trained for 5000 steps",
    "50 steps",
    "inside the residual stream, hyperparameters in the table",
    "needs flash attention, flash-attn or FlashAttention",
    "FlowMatchEulerDiscreteScheduler num_train_timesteps: 1000",
    "PyTorch Lightning",
    "",
]


@pytest.mark.parametrize("text", FEW)
def test_few_steps_are_named(text: str) -> None:
    assert names_few_steps(text)


@pytest.mark.parametrize("text", OTHERS)
def test_few_steps_are_not_named(text: str) -> None:
    assert not names_few_steps(text)


def test_what_student_json_says_goes_first() -> None:
    assert "guidance is off" in guidance_note(None, ["base"])
    assert guidance_note(1.0, ["base"]) == guidance_note(0.0, ["base"]) == guidance_note(None, ["turbo"]) == ""
    assert guidance_note(1.5, ["base"], ["guidance_scale=4.5"]) == ""


def test_a_card_that_draws_with_guidance() -> None:
    """As tensorart's does, whose name says that it needs none."""
    note = guidance_note(None, ["sd3.5-medium-turbo"], ["pipe(prompt, num_inference_steps=8, guidance_scale=1.5, height=1024)"])
    assert note.startswith("guidance is off, and the student's card draws with guidance_scale 1.5: give --guidance-scale")
    assert "3.5 and 7" in guidance_note(None, ["hyper"], ["guidance_scale = 3.5", "`guidance_scale`: 7, Guidance Scale: 3.5"])
    for card in ("guidance_scale=0.0", "guidance_scale=1", "ours: guidance_scale=0, base: guidance_scale=4.5"):
        assert guidance_note(None, ["turbo"], [card]) == ""  # what goes without is meant, at least too


def test_a_snapshot_has_the_models_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--sd3.5-turbo" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    assert "models--org--sd3.5-turbo" in names_of(snapshot)
    assert "models--org--sd3.5-turbo" in names_of(snapshot / "sd3.safetensors")
    link = tmp_path / "model"
    link.symlink_to(snapshot)
    assert "models--org--sd3.5-turbo" in names_of(link)


def test_the_built_in_student_says_that_it_needs_none() -> None:
    assert open_student(BUILTIN_STUDENT).guidance_note == ""


def test_a_student_that_says_nothing(tiny_folder: Path) -> None:
    (tiny_folder / "student.json").unlink()
    note = open_student(tiny_folder).guidance_note
    assert "guidance is off" in note
    assert '{"guidance_scale": 1.0}' in note
    (tiny_folder / "README.md").write_text("Draws in 4 steps.")
    assert open_student(tiny_folder).guidance_note == ""


def test_the_scheduler_may_say_it(tiny_folder: Path) -> None:
    (tiny_folder / "student.json").unlink()
    file = tiny_folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stochastic_sampling": True}))
    assert open_student(tiny_folder).guidance_note == ""


def test_the_folder_may_say_it(tiny_folder: Path) -> None:
    (tiny_folder / "student.json").write_text('{"steps": 4}')
    assert open_student(tiny_folder).guidance_note
    assert open_student(tiny_folder.rename(tiny_folder.with_name("sd3-turbo"))).guidance_note == ""
