"""Rows part at one fork, compute as much, and are told apart only where they differ."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.results.statistics import MeanInterval, t_interval
from benchmarks.studies.distilled import ablations
from benchmarks.studies.distilled.ablations import FAILED, NO_DIFFERENCE, Measured, chosen, markdown, train
from benchmarks.studies.distilled.recipe_text import ablations_toml, recipe_toml
from benchmarks.studies.distilled.rows import Row, compute, forks, recipe_of, rows
from benchmarks.studies.distilled.run_folder import RunFolder
from distillation.recipe import Recipe, load_recipe
from distillation.run.order import RECIPES
from distillation.run.start import INTERRUPTED
from distillation.stages import MatchStage, MergeStage, TrajectoryStage
from quantization.errors import InputError

RECIPE = load_recipe(RECIPES / "shapes-cpu.toml")
FOUR, TWO = forks(RECIPE)
ROWS = {row.name: row for row in rows(FOUR, 200)}


def last(name: str) -> Any:
    return ROWS[name].stages[-1]


def test_the_forks_are_the_recipes() -> None:
    assert [(fork.follow.name, fork.match.name, fork.steps) for fork in (FOUR, TWO)] == [
        ("follow-4", "match-4", 4),
        ("follow-2", "match-2", 2),
    ]


def test_rows_differ_in_what_they_are_named_for() -> None:
    default = last("default-4")
    differences = {
        "renoised-4": {"compare": "renoise", "fake": "predictions"},
        "finals-4": {"fake": "finals"},
        "segment-4": {"compare": "segment"},
        "cold-4": {"after": "teacher"},
        "kept-4": {"trajectories": 12_288, "teacher_steps": 12, "trajectory_weight": 0.5},
        "whole-t5-4": {"without_t5": 0.0},
        "matching-4": {"guidance_levels": [0.0, 0.0]},
        "guidance-4": {"matching_weight": 0.0},
    }
    for name, wanted in differences.items():
        own, theirs = msgspec.to_builtins(last(name)), msgspec.to_builtins(default)
        changed = {key: value for key, value in own.items() if value != theirs[key] and key not in ("name", "steps")}
        assert json.loads(json.dumps(changed)) == wanted, name
    as_long = {"steps": FOUR.match.steps, "fake_warmup": FOUR.match.fake_warmup}  # as the recipe says
    theirs = msgspec.structs.replace(default, name="match-4", **as_long)
    assert theirs == FOUR.match
    assert last("heads-4").adversarial.weight > 0


def test_rows_compute_as_much() -> None:
    """Within one step; the row without a warm start has the fork's time too. By hand: a step of the default is 4 + 1 of the
    student and fake model, 2 of the teacher, 3 x (3 + 1) there and back: 19 passes of 32 samples; 40 of 200 are 4 + 9."""
    budget = compute(last("default-4"))
    assert budget == 32 * (160 * 19 + 40 * 13)
    assert compute(FOUR.follow) == FOUR.follow.steps * FOUR.follow.batch * 3
    for name, row in ROWS.items():
        spent = sum(compute(stage) for stage in row.stages if isinstance(stage, MatchStage | TrajectoryStage))
        wanted = budget + compute(FOUR.follow) * (name == "cold-4")
        if name.startswith("path"):  # the fork, or what takes its place
            wanted = compute(FOUR.follow) * bool(row.stages)
        assert abs(spent - wanted) <= 32 * 22 * max(1, len(row.stages) - 1), name


def test_the_path_is_followed_at_the_runs_own_pace(tmp_path: Path) -> None:
    """A step of either took 1.75 s, of 48 x 3 passes and of 32 x 19: so as many steps as the default has, the first 40 of its 200
    being 13 passes in 19."""
    control = chosen(run_of(tmp_path / "run"), 200, 1, ["control-4"])["control-4", 0].stages[0]
    assert control.steps == round(160 + 40 * 13 / 19)


def test_seeds_change_what_comes_after_the_fork_alone() -> None:
    seeded = [row.seeded(seed) for seed in range(3) for row in ROWS.values()]
    recipe = recipe_of(RECIPE, seeded, 2)
    names = [stage.name for stage in recipe.stages]
    assert names[:4] == ["vae", "text", "teacher", "follow-4"]
    assert len(set(names)) == len(names) == 4 + 3 * 16  # rows of one stage each, less the shared ones, and the split's four
    for name in names[:4]:
        assert recipe.identity(name, "given") == RECIPE.identity(name, "given")
    split = recipe.stage("split-4-s2")
    assert isinstance(split, MergeStage)
    assert (split.after, split.branches) == ("whole-4-s2", ("low-4-s2", "high-4-s2"))
    assert recipe.stage("default-4-s1").after == "follow-4"


def test_the_recipe_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    recipe = recipe_of(RECIPE, [row.seeded(0) for row in (*ROWS.values(), *rows(TWO, 200, brief=True))], 2)
    (tmp_path / "recipe.toml").write_text(recipe_toml(recipe), "utf-8")
    assert load_recipe(tmp_path / "recipe.toml") == recipe
    assert recipe.judged == 0
    assert not recipe.students
    (tmp_path / "whole.toml").write_text(recipe_toml(RECIPE).replace('"profiles/', f'"{RECIPES}/profiles/'), "utf-8")
    assert load_recipe(tmp_path / "whole.toml") == RECIPE  # students, variants and a profile's place too


def test_the_recipe_that_ships_has_the_rows() -> None:
    assert (RECIPES / "ablations.toml").read_text("utf-8") == ablations_toml(), "write it again, as its head says"
    shipped = load_recipe(RECIPES / "ablations.toml")
    for row in ROWS.values():
        for stage in row.seeded(0).stages:
            assert shipped.stage(stage.name) == stage


def test_a_recipe_without_a_fork_is_refused() -> None:
    with pytest.raises(InputError, match="no fork"):
        forks(msgspec.structs.replace(RECIPE, stages=RECIPE.stages[:4]))


def run_of(folder: Path, recipe: Recipe = RECIPE) -> RunFolder:
    """A run that has come to its matching."""
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(msgspec.to_builtins(recipe)))
    run = RunFolder(folder)
    for stage in (*recipe.way_to("match-4"), *recipe.way_to("match-2")):
        finish(run, stage.name)
    return run


def finish(run: RunFolder, name: str) -> None:
    result = run.run.lineage(name).results[0]
    result.mkdir(parents=True, exist_ok=True)
    (result / "stage.json").write_text(json.dumps({"identity": name}))
    (result.parent / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "cpu_seconds": 1.75}}\n' for step in range(60)))


class Trainer:
    """In the place of ``begin``: finishes stages until one that it cannot."""

    def __init__(self, bad: str = "", code: int = 2) -> None:
        self.bad, self.code, self.orders = bad, code, 0

    def __call__(self, order: Any) -> int:
        self.orders += 1
        recipe = order.read()
        (order.out / "recipe.json").write_text(json.dumps(msgspec.to_builtins(recipe)))
        trained = RunFolder(order.out)
        for stage in recipe.stages:
            if stage.name == self.bad:
                return self.code
            finish(trained, stage.name)
        return 0


def test_rows_are_trained_beside_the_run_and_failures_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = run_of(tmp_path / "run"), tmp_path / "run" / "ablations"
    seeded = chosen(run, 200, 2, ["default-4", "finals-4", "default-dropped-4"])
    assert [key[0] for key in seeded] == ["control-4", "finals-4", "default-4", "default-dropped-4"] * 2
    trainer = Trainer("finals-4-s1")
    monkeypatch.setattr(ablations, "begin", trainer)
    assert train(run, out, seeded, 1) == {("finals-4", 1)}
    assert trainer.orders == 2
    before = RECIPE.identity("follow-4", run.run.given)[:8]
    assert (out / "stages" / f"follow-4-{before}").resolve() == tmp_path / "run" / "stages" / f"follow-4-{before}"
    assert RunFolder(out).stage("default-4-s1").identity == "default-4-s1"
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["name"] == "shapes-cpu"  # nothing of the run is changed
    assert not (tmp_path / "run" / "stages" / "default-4-s0").exists()


def test_a_training_that_fails_before_the_rows_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run")
    seeded = chosen(run, 200, 1, ["default-4"])
    monkeypatch.setattr(ablations, "begin", Trainer("follow-4"))
    for stage in (tmp_path / "run" / "stages").glob("follow-4-*/result/stage.json"):
        stage.unlink()
    with pytest.raises(InputError, match="A stage was not made yet"):
        train(run, tmp_path / "out", seeded, 1)
    finish(run, "follow-4")
    monkeypatch.setattr(ablations, "begin", lambda order: 3)
    with pytest.raises(InputError, match="ended with code 3"):
        train(run, tmp_path / "out", seeded, 1)
    monkeypatch.setattr(ablations, "begin", lambda order: INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "out", seeded, 1)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    with pytest.raises(InputError, match="default-5"):
        chosen(run, 200, 1, ["default-5"])
    next((tmp_path / "run" / "stages").glob("match-4-*/metrics.jsonl")).unlink()
    with pytest.raises(InputError, match="tells no seconds"):
        chosen(run, 200, 1, [])


def measured(share: float, law: float | None = 0.05) -> Measured:
    return Measured(share=share, law=law, std=1.0, stray=0.02, cpu_seconds=300.0)


def result(shares: list[float | None], controls: list[float]) -> Any:
    row = Row("x-4", "told", (), "x", 4, control="control-4")
    return ablations._result(row, [None if s is None else measured(s) for s in shares], [measured(c) for c in controls])


def test_differences_are_of_seeds() -> None:
    """By hand: .02, .03, .04 have mean .03 and standard deviation .01; t of two degrees is 4.3027: .03 +- .02484."""
    better = result([0.92, 0.93, 0.94], [0.9, 0.9, 0.9])
    assert better.difference.mean == pytest.approx(0.03)
    assert (better.difference.low, better.difference.high) == (pytest.approx(0.00516, abs=1e-5), pytest.approx(0.05484, abs=1e-5))
    assert better.verdict == "better"
    assert result([0.88, 0.87, 0.86], [0.9, 0.9, 0.9]).verdict == "worse"


@pytest.mark.parametrize(
    "shares", [[0.9, 0.97, 0.92], [0.91, 0.911, 0.909]], ids=["the interval holds 0", "less than is called a difference"]
)
def test_null_results_are_told_as_such(shares: list[float]) -> None:
    assert result(list(shares), [0.9, 0.9, 0.9]).verdict == NO_DIFFERENCE


def test_what_is_missing_is_told() -> None:
    assert result([0.9, None, 0.9], [0.9, 0.9, 0.9]).verdict == FAILED
    assert result([0.9], [0.8]).verdict == "one seed tells nothing"
    page = markdown([result([0.95, None], [0.9, 0.9]), result([0.92, 0.93, 0.94], [0.9, 0.9, 0.9])], 3, 3000)
    assert "| x-4 | told | 95.0, failed | 95.0 | control-4 | - | failed | 0.050 | 1.000 | 2.00% | 300 |" in page
    assert "| +3.0 (+0.5 to +5.5) | better |" in page


def test_one_sample_has_no_interval() -> None:
    assert t_interval([2.0]) == MeanInterval(2.0, -math.inf, math.inf)
    with pytest.raises(InputError, match="no samples"):
        t_interval([])
