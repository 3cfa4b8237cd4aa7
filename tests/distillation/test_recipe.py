"""Recipes: what they say is what is meant, and what they cannot mean is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillation.recipe import RecipeError, load_recipe, parse_recipe
from distillation.stages import FlowStage, MatchStage, QuantizeStage

TEXT = """
name = "small"
seed = 3

[[stage]]
kind = "flow"
name = "teacher"
steps = 100
optimizer = { kind = "muon", learning_rate = 2e-3 }

[[stage]]
kind = "trajectory"
name = "follow"
after = "teacher"
steps = 50
levels = [1, 0.75, 0]

[[stage]]
kind = "match"
name = "match"
after = "follow"
steps = 20
levels = [1, 0.75, 0]
compare = "segment"

[[stage]]
kind = "match"
name = "control"
after = "follow"
steps = 20

[[stage]]
kind = "quantize"
name = "w4"
after = "match"
steps = 5
profile = "w4.toml"

[[student]]
name = "student"
stage = "match"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return path


def test_what_a_recipe_says(file: Path) -> None:
    recipe = load_recipe(file)
    assert (recipe.name, recipe.seed) == ("small", 3)
    teacher, match = recipe.stage("teacher"), recipe.stage("match")
    assert isinstance(teacher, FlowStage)
    assert (teacher.optimizer.kind, teacher.optimizer.learning_rate, teacher.steps) == ("muon", 2e-3, 100)
    assert isinstance(match, MatchStage)
    assert (match.compare, match.fake, match.levels) == ("segment", "transition", (1, 0.75, 0))
    assert [stage.name for stage in recipe.way_to("match")] == ["teacher", "follow", "match"]


def test_identities_are_of_the_way_and_of_nothing_else(file: Path) -> None:
    plain = load_recipe(file)
    later = load_recipe(file, ["match.steps=21"])
    assert later.identity("follow") == plain.identity("follow")
    assert later.identity("control") == plain.identity("control")
    assert later.identity("match") != plain.identity("match")
    earlier = load_recipe(file, ["teacher.optimizer.learning_rate=1e-3"])
    assert all(earlier.identity(stage.name) != plain.identity(stage.name) for stage in plain.stages)
    assert load_recipe(file, ["seed=4"]).identity("teacher") != plain.identity("teacher")
    assert plain.identity("match") != plain.identity("control")


def test_changes(file: Path) -> None:
    changes = ["match.compare=renoise", "match.levels=[1, 0.5, 0]", "control.optimizer.clip=0", "name='other'"]
    recipe = load_recipe(file, changes)
    match, control = recipe.stage("match"), recipe.stage("control")
    assert isinstance(match, MatchStage)
    assert (match.compare, match.levels, control.optimizer.clip, recipe.name) == ("renoise", (1, 0.5, 0), 0, "other")


def test_what_a_recipe_adds_can_be_added_to_another(file: Path) -> None:
    base = file.parent / "elsewhere" / "base.toml"
    base.parent.mkdir()
    base.write_text(TEXT.replace("steps = 100", "steps = 7"))
    more = file.with_name("more.toml")
    more.write_text(
        'name = "more"\nextends = "small.toml"\n[[stage]]\nkind = "match"\nname = "late"\nafter = "match"\nsteps = 1\n'
        '[[student]]\nname = "late"\nstage = "late"\n'
    )
    own, moved = load_recipe(more), load_recipe(more, ["extends=elsewhere/base.toml", "late.steps=2"])
    assert [stage.name for stage in moved.way_to("late")] == ["teacher", "follow", "match", "late"]
    assert [own.stage("teacher").steps, moved.stage("teacher").steps, moved.stage("late").steps] == [100, 7, 2]
    assert own.name == moved.name == "more"
    profiles = [stage.profile for recipe in (own, moved) for stage in recipe.stages if isinstance(stage, QuantizeStage)]
    assert profiles == [str(file.parent / "w4.toml"), str(file.parent / "elsewhere/w4.toml")]  # beside whose recipe it is


def test_a_recipe_that_adds_to_none_is_moved_to_none(file: Path) -> None:
    with pytest.raises(RecipeError, match="the recipe extends none"):
        load_recipe(file, ["extends=small.toml"])


@pytest.mark.parametrize("change", ["nobody.steps=1", "teacher", "teacher.steps.far=1", "=1", "teacher.=1", ""])
def test_changes_that_name_nothing(file: Path, change: str) -> None:
    with pytest.raises(RecipeError, match="names nothing in the recipe"):
        load_recipe(file, [change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher.stpes=1", "unknown field `stpes`"),
        ("teacher.steps=0", "steps"),
        ("teacher.steps=1.5", "steps"),
        ("teacher.kind=walk", "walk"),
        ("teacher.optimizer.learning_rate=nan", "no finite number"),
        ("teacher.optimizer.learning_rate=inf", "no finite number"),
        ("teacher.optimizer.learning_rate=-1", "learning_rate"),
        ("match.compare=everywhere", "compare"),
        ("match.levels=[1, 0.75]", "from 1 down to 0"),
        ("match.levels=[0.75, 1, 0]", "from 1 down to 0"),
        ("match.after=nobody", "a stage before it"),
        ("teacher.after=match", "a stage before it"),
        ("control.name=match", "a name of its own"),
        ("control.name='../x'", "a name of its own"),
        ("stage=[]", "has no stages"),
        ("student.stage=nobody", "student student: stage"),
        ("student.name=stages", "a name of its own"),
        ("student.variants.early=nobody", r"variants\.early.*a stage of the recipe"),
        ("student.variants={'a/b'='follow'}", "variants.*names of letters"),
        ("student.variants.four=w4", r"variants\.four.*w4, which quantizes"),
        ("student=[{name='four', stage='w4', dtype='fp16'}]", "student four: dtype"),
        ("colour=red", "unknown field `colour`"),
    ],
)
def test_what_cannot_be_followed(file: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(file, [change])
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"name = ", "is not TOML"), (b"\xff\xfe", "is not TOML"), (None, "cannot be read")]
)
def test_what_is_no_recipe(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "x.toml")


def test_a_stage_that_is_not_there(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such stage.\n.*teacher, follow, match, control, w4"):
        load_recipe(file).stage("split")


def test_what_computes_in_fp32_anyway_is_shared() -> None:
    """A recipe in bfloat16 takes up the autoencoder and the text encoders of one that is not, and nothing behind them."""
    stages = [
        {"kind": "vae", "name": "vae", "steps": 1},
        {"kind": "text", "name": "text", "after": "vae", "steps": 1},
        {"kind": "flow", "name": "teacher", "after": "text", "steps": 1},
    ]
    whole, half = (parse_recipe({"name": "r", "stage": stages, "half": half}, "here") for half in (False, True))
    same = {name: whole.identity(name) == half.identity(name) for name in ("vae", "text", "teacher")}
    assert same == {"vae": True, "text": True, "teacher": False}
