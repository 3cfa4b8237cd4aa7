"""A run that is asked to stop keeps what it has, at any moment, and goes on as if it had not been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distillation.run.order import Order
from distillation.run.records import Display
from distillation.run.start import follow
from tests.distillation.killed import run_and_kill
from tests.distillation.run.forked import asks_to_stop
from tests.distillation.run.tiny import RECIPE, STUDENT, content, half_written, lay_out, metrics


@pytest.fixture(scope="module")
def undisturbed(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Order:
    order = replace(lay_out(given), out=tmp_path_factory.mktemp("undisturbed") / "run")
    assert follow(order) == 0
    return order


@pytest.mark.parametrize(
    ("number", "name", "done", "there"),
    [
        (signal.SIGINT, "trajectories", 1, "cache/*/00000000-64.npy"),
        (signal.SIGTERM, "follow", 1, "stages/follow-*/checkpoints/step-00000001/state.json"),
        (signal.SIGINT, "follow", 4, "stages/follow-*/result/stage.json"),
        (signal.SIGTERM, "judging", 2, "stages/follow-*/result/stage.json"),
        (signal.SIGTERM, "match", 2, "stages/match-*/checkpoints/step-00000002/state.json"),
    ],
    ids=["filling a cache", "the first step", "the last step", "judging", "another stage"],
)
def test_a_run_stops_and_goes_on(
    undisturbed: Order,
    tmp_path: Path,
    number: int,
    name: str,
    done: int,
    there: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    order = replace(undisturbed, out=tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(Display, "bar", asks_to_stop(name, done, number))
        assert follow(order) == 130
    assert "interrupted: what is done is kept, and the same command goes on from there" in capfd.readouterr().err
    assert len(list(order.out.glob(there))) == 1
    assert [place for place in half_written(order.out) if place.endswith(".partial")] == []
    assert not (order.out / "student-2").exists()
    assert follow(order) == 0
    assert content(order.out) == content(undisturbed.out)
    for stage in ("follow", "match"):
        assert metrics(order.out, stage) == metrics(undisturbed.out, stage)
    assert half_written(order.out) == []


def test_a_second_ctrl_c_stops_at_once(undisturbed: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the first step; the next run begins there."""
    order = replace(undisturbed, out=tmp_path / "run", stop_after="follow")
    number = signal.SIGINT

    def twice(*_: object) -> float:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        time.sleep(5)  # a signal is taken between two instructions
        return 0.0

    with monkeypatch.context() as patched:
        patched.setattr("distillation.training.trainee.Trainee.learn", twice)
        with pytest.raises(KeyboardInterrupt):
            follow(order)
    assert not list(order.out.glob("stages/*/checkpoints/*"))
    assert not list(order.out.glob("stages/*/result"))
    assert follow(order) == 0
    assert metrics(order.out, "follow") == metrics(undisturbed.out, "follow")


def test_signals_are_as_they_were_afterwards(undisturbed: Order) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert follow(undisturbed) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_lines_of_steps_that_are_made_again_go(undisturbed: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after more steps than its checkpoint has: their lines, and half of one, are in the file."""
    order = replace(undisturbed, out=tmp_path / "run", stop_after="follow")
    with monkeypatch.context() as patched:
        patched.setattr(Display, "bar", asks_to_stop("follow", 2))
        assert follow(order) == 130
    (file,) = order.out.glob("stages/follow-*/metrics.jsonl")
    with file.open("a") as stream:
        stream.write(json.dumps({"step": 3, "loss": 99.0}) + '\n{"step": 4, "lo')
    assert follow(order) == 0
    assert metrics(order.out, "follow") == metrics(undisturbed.out, "follow")


def test_a_run_that_is_killed_three_times(undisturbed: Order, tmp_path: Path) -> None:
    order = replace(undisturbed, out=tmp_path / "run", changes=("checkpoint_seconds=1e-6",))
    run_and_kill(order, times=3, chance=random.Random(0), longest_s=3.0)
    assert half_written(order.out) == []
    alike = ("metrics.jsonl", "tensorboard", "stage.json", "recipe.json")
    assert content(order.out, alike) == content(undisturbed.out, alike)
    for stage in ("follow", "match"):
        assert metrics(order.out, stage) == metrics(undisturbed.out, stage)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"x" + file.read_bytes()),
    ],
    ids=["cut", "missing", "longer"],
)
def test_what_a_killed_run_is_compared_with_can_differ(undisturbed: Order, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    shutil.copytree(undisturbed.out, tmp_path / "run")
    damage(next((tmp_path / "run").glob("stages/match-*/result/transformer/*.safetensors")))
    assert content(tmp_path / "run") != content(undisturbed.out)


def test_recipe_of_these_tests_has_two_files_of_trajectories() -> None:
    assert "trajectories = 70" in RECIPE + STUDENT  # so that a run can stop between them
