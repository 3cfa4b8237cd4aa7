"""Every recipe of this package is sound, is estimated without and with a teacher, and the world's is followed, scaled down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.cli import main as cli
from distillation.random_students import make_student, preset_shape
from distillation.recipe import load_recipe
from distillation.run.order import RECIPES, Order
from distillation.run.outcome.taken_up import TakenUp
from distillation.run.plan import plan
from distillation.stages import FlowStage, MatchStage, TrajectoryStage
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT
from tests.distillation.run.tiny import half_written, opened, stages
from tests.helpers.shapes_run import SMALL

SIZE = ("resolution=64",)  # that a tiny teacher can draw
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))


@pytest.fixture(scope="module")
def given_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of more than one block: only then text has a way out of one, which adapters go to."""
    return make_student(preset_shape("tiny", layers=2), tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_sound(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.toml")
    assert recipe.name == name
    assert recipe.students or name == "ablations"  # whose rows are measured, not handed out
    for student in recipe.students:
        assert recipe.stage(student.stage) in recipe.way_to(student.stage)
    assert len({recipe.identity(stage.name) for stage in recipe.stages}) == len(recipe.stages)
    assert all(stage.batch % recipe.processes == 0 and stage.batch % recipe.devices == 0 for stage in recipe.stages)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("taught", [False, True], ids=["without a teacher", "with one"])
def test_an_order_is_estimated(name: str, taught: bool, given_teacher: Path, tmp_path: Path) -> None:
    order = Order(name, given_teacher if taught else None, tmp_path / "run", SIZE if taught else ())
    estimate = plan(order)
    recipe = order.read()
    followed = [stage.name for stage in recipe.stages if isinstance(stage, FlowStage | TrajectoryStage | MatchStage)]
    assert [stage.name for stage in estimate.stages] == followed
    assert estimate.hours > 0
    assert estimate.bytes > 0
    assert not order.out.exists()


def test_the_command_prints_an_estimate(
    given_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["distill", "sd35-medium-lora", str(given_teacher), "-o", str(tmp_path / "run"), "--dry-run", "--set", *SIZE]
    monkeypatch.setattr("sys.argv", ["flash-deploy", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    said = capsys.readouterr().out
    assert next(line.split()[0] for line in said.splitlines()[:4] if line.strip("- ")) == "stage"
    assert "adapters of rank 64" in said
    assert "assumed, not measured" in said
    assert not (tmp_path / "run").exists()


def test_the_world_s_recipe_from_nothing(shapes_run: Path) -> None:
    assert sorted(stages(shapes_run)) == sorted(SMALL)
    assert half_written(shapes_run) == []
    student = open_student(shapes_run / "student-4")
    assert student.defaults.world == "shapes"
    assert student.defaults.sigmas == pytest.approx((1.0, 0.75, 0.5, 0.25))
    assert (student.defaults.height, student.defaults.max_sequence_length) == (64, 24)
    assert (shapes_run / "student-w4" / "profile.toml").is_file()
    for stage in ("teacher", "follow-4", "match-4", "w4"):
        judged = json.loads(next(shapes_run.glob(f"stages/{stage}-*/judged.json")).read_text())
        assert ("right" in judged, "right_without_t5" in judged) == (True, stage != "teacher")


def test_the_built_in_student_is_of_the_recipe(tmp_path: Path) -> None:
    """Whoever changes a stage of it makes it anew: what a GPU and an hour of a CPU have learned cannot be taken up any more."""
    order = Order("shapes-gpu", None, tmp_path / "run", device="cpu", take_up=BUILTIN_STUDENT)
    run, student = opened(order), TakenUp(BUILTIN_STUDENT)
    held = {stage.name: student.variant_of(stage, run._identity(stage.name), run.recipe) for stage in run.recipe.stages}
    expected = {"text": "", "vae": "", "teacher": "teacher", "split-4": "", "match-2": "2-steps"}
    assert {name: variant for name, variant in held.items() if variant is not None} == expected
