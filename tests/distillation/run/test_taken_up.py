"""Stages that a handed-out student holds are not made again, and what nothing needs is not made at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillation.recipe import parse_recipe
from distillation.run.jobs.needs import stages_to_make
from distillation.run.order import Order
from distillation.run.start import follow
from exporters.errors import InputError
from exporters.student.open import open_student
from tests.distillation.run.tiny import RECIPE, STUDENT, half_written, lay_out, stages
from tests.helpers.shapes_run import follow_shapes


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a component."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def of_tiny(whole: Order, folder: Path, *changes: str) -> Order:
    """The recipe of ``match`` alone in another folder, with the same teacher."""
    laid = lay_out(folder, RECIPE + STUDENT)
    return replace(laid, teacher=whole.teacher, take_up=whole.out / "student-2", changes=changes)


def test_a_stage_is_taken_up_and_those_before_it_are_not_made(whole: Order, tmp_path: Path) -> None:
    order = of_tiny(whole, tmp_path)
    assert follow(order) == 0
    assert set(stages(order.out)) == {"match"}
    (wanted,), (got,) = (place.glob("stages/match-*/result/transformer") for place in (whole.out, order.out))
    for name, weight in weights(wanted).items():
        assert torch.equal(weights(got)[name], weight)
    assert follow(order) == 0  # and is there
    assert follow(replace(order, take_up=None)) == 0
    assert set(stages(order.out)) == {"match"}
    assert follow(replace(order, take_up=None, stop_after="follow")) == 0  # unless it is asked for
    assert set(stages(order.out)) == {"follow", "match"}


@pytest.mark.parametrize(
    ("changes", "student", "told"),
    [
        (("seed=1",), "student-2", "holds no stage of the recipe as it is"),
        (("match.steps=4",), "student-2", "holds no stage of the recipe as it is"),
        ((), "student-w4", "holds no stage of the recipe as it is"),  # codes, which its profile tells of
        ((), ".", r"distillation\.json.*does not tell which stages"),
    ],
)
def test_another_stage_is_not_taken_up(whole: Order, tmp_path: Path, changes: Sequence[str], student: str, told: str) -> None:
    order = replace(of_tiny(whole, tmp_path, *changes), take_up=whole.out / student)
    with pytest.raises(InputError, match=told):
        follow(order)
    assert not stages(order.out)


def test_a_student_of_shapes_holds_its_teacher(shapes_run: Path, tmp_path: Path) -> None:
    """Weights were stored in fp16: half a unit of its 11th bit."""
    run = follow_shapes(tmp_path / "run", take_up=shapes_run / "student-4")
    assert set(stages(run)) == {"text", "vae", "teacher", "split-4", "match-2", "w4"}
    for held in ("text/result/text_encoder_3", "vae/result/vae", "teacher/result/transformer", "split-4/result/transformer"):
        stage, _, part = held.partition("/")
        (wanted,), (got,) = (place.glob(f"stages/{stage}-*/{part}") for place in (shapes_run, run))
        ours, theirs = weights(got), weights(wanted)
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            assert ours[name].dtype == torch.float32
            assert torch.allclose(ours[name], weight, rtol=2**-11, atol=2**-25), name
    teacher = open_student(shapes_run / "student-4", variant="teacher").defaults
    assert (teacher.steps, teacher.guidance_scale, teacher.sigmas) == (28, 2.0, None)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("no T5", "text_encoder_3: is not there .*what stage text has left"),
        ("NaN", r"transformer: proj_out\.bias: holds NaN or infinity"),
        ("cut off", "teacher.safetensors: truncated"),
    ],
)
def test_a_damaged_student_is_refused(shapes_run: Path, tmp_path: Path, harm: str, told: str) -> None:
    """Above all one of whose components is gone: the run would go on without it."""
    student = tmp_path / "student"
    shutil.copytree(shapes_run / "student-4", student)
    file = student / "transformer/diffusion_pytorch_model.teacher.safetensors"
    if harm == "no T5":
        shutil.rmtree(student / "text_encoder_3")
    elif harm == "NaN":
        tensors = load_file(file)
        tensors["proj_out.bias"][0] = torch.nan
        save_file(tensors, file)
    else:
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError, match=told):
        follow_shapes(tmp_path / "run", take_up=student)
    assert half_written(tmp_path / "run") == []
    assert "teacher" not in stages(tmp_path / "run")


def test_what_nothing_needs_is_not_made() -> None:
    """Of a chain with a fork; ``text`` leaves what a student is made of, ``follow`` is only on the way."""
    told = [("text", "text", ""), ("vae", "vae", "text"), ("flow", "teacher", "vae"), ("trajectory", "follow", "teacher")]
    told += [("match", "low", "follow"), ("match", "high", "follow")]
    tables = [dict(zip(("kind", "name", "after", "steps", "batch"), (*one, 1, 1), strict=True)) for one in told]
    tables.append({"kind": "merge", "name": "split", "after": "follow", "branches": ["low", "high"]})
    tables.append({"kind": "trajectory", "name": "two", "after": "split", "steps": 1, "batch": 1})
    tables.append({"kind": "trajectory", "name": "one", "after": "two", "path": "split", "steps": 1, "batch": 1})
    recipe = parse_recipe({"name": "chain", "stage": tables}, "a test")
    everything = {one.name for one in recipe.stages}

    def to_make(there: set[str], last: int = len(tables)) -> set[str]:
        return stages_to_make(recipe, recipe.stages[:last], lambda name: name in there)

    assert to_make(set()) == everything
    assert to_make(everything) == set()
    assert to_make(everything - {"follow", "low", "high", "teacher", "split"}) == set()
    assert to_make(everything - {"follow", "text"}) == {"text"}
    assert to_make({"text", "vae", "split"}, last=8) == {"two", "teacher"}  # whose path it follows
    assert to_make({"text", "vae", "teacher", "low"}, last=8) == {"follow", "high", "split", "two"}
    assert to_make({"text", "vae", "teacher", "two", "follow", "low"}) == {"one", "split", "high"}  # that path's student
    assert to_make({"text", "vae", "teacher", "split"}, last=4) == {"follow"}
