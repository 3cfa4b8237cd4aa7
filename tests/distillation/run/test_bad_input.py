"""One clear message of what cannot be followed, exit code 2, and nothing that is half written."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from deploy.cli import main as cli
from distillation.run.order import Order
from distillation.run.start import follow
from exporters.errors import InputError
from quantization.files import WritingError
from tests.distillation.run.tiny import BRANCHES, LORA, RECIPE, STUDENT, content, half_written

Place = Callable[..., Order]
FULL = "No space left on device"


@pytest.fixture
def place(given: Path, tmp_path: Path) -> Place:
    """Lays out a recipe of its own beside the teacher that all share."""

    def lay(text: str = RECIPE + STUDENT, **changes: Any) -> Order:
        for name in ("prompts.txt", "w4.toml"):
            shutil.copy(given / name, tmp_path / name)
        (tmp_path / "recipe.toml").write_text(text)
        order = Order(str(tmp_path / "recipe.toml"), given / "teacher", tmp_path / "run", device="cpu")
        return replace(order, **changes)

    return lay


def refused(order: Order, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *more: str) -> str:
    """What ``flash-deploy distill`` says of an order that it refuses, with exit code 2 and without a traceback."""
    monkeypatch.setattr("sys.argv", ["flash-deploy", "distill", *order.arguments(), *more])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capfd.readouterr().err
    assert caught.value.code == 2, said
    assert len(re.findall("^error: ", said, re.MULTILINE)) == 1
    assert "Traceback" not in said
    return said


def changed(old: str, new: str, recipe: str = RECIPE + STUDENT) -> str:
    assert old in recipe
    return recipe.replace(old, new)


WHOLE = RECIPE + BRANCHES


LOW = changed("only = [1]", "only = [1]\naverage = 0.5", WHOLE)  # a mark of the stage's own
HEADS = ("match.trajectories=0", "match.adversarial.weight=0.1")
MORE = '[[stage]]\nkind = "match"\nname = "more"\nafter = "merged"\nsteps = 1\n'
TWICE = STUDENT.replace("student-2", "student-2-lora")
HALF = changed('name = "student-w4"\n', 'name = "student-w4"\ndtype = "fp16"\n', WHOLE)
PATH = changed('after = "follow"', 'after = "follow"\npath = "{}"').replace("{ ", "{{ ").replace(" }", " }}")
OTHER = LOW.replace("levels = [1.0, 0.75, 0.0]\nonly = [1]", "levels = [1.0, 0.5, 0.0]\nonly = [1]")


@pytest.mark.parametrize(
    ("recipe", "messages"),
    [
        (changed("judged = 2", "jugded = 2"), ["unknown field `jugded`"]),
        (changed("teacher_steps = 4", "teacher_stpes = 4"), ["unknown field `teacher_stpes`", "$.stage[0]"]),
        (changed('after = "follow"', 'after = "folow"'), ["stage match: after", "expected a stage before it, got folow"]),
        (changed('after = "follow"', 'after = "match"'), ["stage match: after", "expected a stage before it, got match"]),
        (changed('"high", "low"', '"high", "follow"', WHOLE), ["stage merged: branches", "go on from 'match'", "got follow"]),
        (changed('"high", "low"', '"high", "nobody"', WHOLE), ["stage merged: branches", "got nobody"]),
        (changed("only = [1]", "only = [2]", WHOLE), ["stage low: only", "steps of 2, counted from 0, got [2]"]),
        (OTHER, ["stage merged: branches", "stages of its own levels", "got low"]),
        (changed("levels = [1.0, 0.75, 0.0]", "levels = [1.0, 0.75, 0.8, 0.0]"), ["levels go from 1 down to 0"]),
        (changed("nodes = [1.0, 0.9, 0.75", "nodes = [1.0, 0.9, 0.7"), ["nodes", "its levels among them", "0.75"]),
        (PATH.format("nobody"), ["stage match: path", "a stage with levels that it goes on from", "got nobody"]),
        (PATH.format("match"), ["stage match: path", "a stage with levels that it goes on from", "got match"]),
        (PATH.format("follow"), ["stage match: path", "a stage that comes through [0.5, 0.9]", "got follow of [1.0, 0.75, 0.0]"]),
        (changed('stage = "match"', 'stage = "mtach"'), ["student student-2: stage", "got mtach"]),
        (changed('name = "student-2"', 'name = "cache"'), ["student 'cache'"]),
        (HALF, ["student student-w4: dtype", "expected fp32", "got fp16"]),
        (WHOLE + LORA + MORE, ["stage more: after", "no adapter"]),
        (RECIPE + LORA + STUDENT + TWICE, ["student-2-lora", "the adapter of student-2 goes there"]),
        (f"shard = true\n{RECIPE}adversarial = {{ weight = 0.1 }}\n", ["stage match: adversarial.weight", "shard = true"]),
        ("", ["missing required field `name`"]),
        ('name = "x"', ["missing required field `stage`"]),
        ("name = ", ["is not TOML"]),
    ],
)
def test_recipes(
    place: Place, recipe: str, messages: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    order = place(recipe)
    said = refused(order, monkeypatch, capfd)
    for message in [*messages, order.recipe]:
        assert message in said.replace("\n", "")
    assert not order.out.exists()


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"recipe": "shapes-cup"}, ["There is no such recipe", "shapes-cup", "sd35-medium, sd35-medium-lora, shapes-cpu"]),
        ({"recipe": "nowhere/x.toml"}, ["There is no such recipe", "nowhere/x.toml"]),
        ({"changes": ("nobody.steps=1",)}, ["names nothing in the recipe", "--set teacher.steps=100", "got nobody.steps=1"]),
        ({"changes": ("follow.steps=many",)}, ["Expected `int`, got `str`"]),
        ({"stop_after": "folow"}, ["no such stage", "expected follow, match, got folow"]),
        ({"device": "cuda"}, ["--device cuda: torch sees no CUDA device here", "--device cpu"]),
        ({"device": "gpu"}, ["--device gpu: there is no such device", "cpu, cuda or mps"]),
        ({"changes": ("resolution=512",)}, ["resolution: no such picture", "multiples of 16 up to 192, got 512"]),
        ({"teacher": None}, ["stage follow: there is no transformer to go on from", "give a teacher's folder"]),
        ({"teacher": Path("/nowhere/teacher")}, ["/nowhere/teacher"]),
        ({"changes": ("data.file=none.txt",)}, ["none.txt", "No such file"]),
        ({"changes": ("data.file=/dev/null",)}, ["There are no prompts", "one prompt a line"]),
        ({"changes": HEADS}, ["no latents that adversarial heads", "a path in stage match, or data with latents"]),
        ({"changes": ("data={ kind = 'folder', path = 'p', resolution = 64 }",)}, ["/p"]),
        ({"changes": ("lora.targets=['to_z']", "follow.trajectories=0")}, ["targets: to_z", "names no linear layer"]),
    ],
)
def test_orders(
    place: Place,
    changes: dict[str, Any],
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    order = place(**changes)
    said = refused(order, monkeypatch, capfd)
    for message in messages:
        assert message in said.replace("\n", " ").replace("  ", " ")
    if "lora.targets=['to_z']" not in order.changes:  # which is seen when the teacher is in memory
        assert not order.out.exists()
    assert not list(order.out.glob("stages/*/result"))


def test_a_teacher_of_another_family(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux/model_index.json").write_text(
        json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", "Flux"]})
    )
    order = place(teacher=tmp_path / "flux")
    said = refused(order, monkeypatch, capfd)
    assert "FluxPipeline" in said
    assert "StableDiffusion3Pipeline" in said
    assert not order.out.exists()


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (None, "No such file or directory"),
        ("", "has no rules"),
        ('[[rule]]\ncomponent = "*"\nweights = "*"\nscheme = "int5"\n', "int5"),
        ('[[rule]]\ncomponent = "*"\nweights = "*"\nscheme = "fp16"\n', "quantizes no weight of the transformer"),
        ('[[rule]]\ncomponent = "vae"\nweights = "*"\nscheme = "int8"\n', "leaves a weight out"),
    ],
    ids=["missing", "empty", "unknown scheme", "nothing", "another component"],
)
def test_profiles(
    place: Place,
    tmp_path: Path,
    profile: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Seen before the first stage: hours lie between."""
    order = place(WHOLE)
    (tmp_path / "w4.toml").unlink()
    if profile is not None:
        (tmp_path / "w4.toml").write_text(profile)
    said = refused(order, monkeypatch, capfd)
    assert message in said.replace("\n", " ")
    assert not order.out.exists()


def test_a_run_that_is_a_file(place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    order = place()
    order.out.write_text("mine")
    said = refused(order, monkeypatch, capfd)
    assert f"{order.out}: File exists" in said.replace("\n", "")
    assert order.out.read_text() == "mine"


def test_a_run_in_a_folder_that_nobody_may_write_to(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refused(place(out=Path("/proc/run")), monkeypatch, capfd)  # root, too
    assert "/proc/run" in said
    assert "cannot be written" in said


def test_a_loss_that_is_no_number(place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The first step is finite and its weights are not of any use; what was kept before stays."""
    order = place(changes=("follow.optimizer.learning_rate=1e30", "follow.optimizer.warmup=0", "follow.average=0"))
    said = refused(order, monkeypatch, capfd)
    assert "student: step 1: the loss is nan" in said
    assert "lower student's learning rate (1e+30)" in said
    assert half_written(order.out) == []
    assert not list(order.out.glob("stages/*/result"))


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("state.save_tensors", SafetensorError(f"I/O error: {FULL}")),
        ("jobs.students.save_transformer", SafetensorError(f"I/O error: {FULL}")),
        ("cache.write_array", OSError(errno.ENOSPC, FULL)),
        ("outcome.publish.write_component", OSError(errno.ENOSPC, FULL)),
        ("outcome.publish.write_weights", OSError(errno.ENOSPC, FULL)),
        ("records._cut", OSError(errno.ENOSPC, FULL)),
    ],
    ids=["checkpoint", "result", "cache", "student", "variant", "metrics"],
)
def test_a_full_disk(
    place: Place, where: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    order = place(changes=("judged=0", "checkpoint_seconds=1e-6", "student-2.variants.path=follow"))

    def full(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"distillation.run.{where}", full)
        said = refused(order, patched, capfd)
    assert FULL in said
    assert [place for place in half_written(order.out) if place.endswith(".partial")] == []
    if where == "state.save_tensors":
        assert follow(order) == 0


@pytest.fixture
def stopped(whole: Order, tmp_path: Path) -> Order:
    """A run in whose second stage something can be damaged."""
    folder = Path(shutil.copytree(whole.out.parent, tmp_path / "x"))
    order = replace(whole, recipe=str(folder / "recipe.toml"), teacher=folder / "teacher", out=folder / "run")
    for stage in ("match", "high", "low", "merged", "w4", "small"):
        (old,) = order.out.glob(f"stages/{stage}-*")
        shutil.rmtree(old)
    return order


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("result/transformer/diffusion_pytorch_model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-100])),
        ("result/transformer/diffusion_pytorch_model.safetensors", lambda file: file.write_bytes(b"")),
        ("result/transformer/diffusion_pytorch_model.safetensors", lambda file: file.unlink()),
        ("result/transformer/config.json", lambda file: file.write_text("{")),
        (
            "result/transformer/config.json",
            lambda file: file.write_text(file.read_text().replace('"num_layers": 1', '"num_layers": 2')),
        ),
        ("result/transformer/config.json", lambda file: file.unlink()),
    ],
    ids=["cut weights", "empty weights", "no weights", "cut config", "another config", "no config"],
)
def test_a_damaged_result(stopped: Order, file: str, damage: Callable[[Path], Any]) -> None:
    (stage,) = stopped.out.glob("stages/follow-*")
    damage(stage / file)
    with pytest.raises(InputError, match="What a stage has left is damaged") as caught:
        follow(stopped)
    assert f"remove {stage / 'result'}: the same command makes it anew" in str(caught.value)
    shutil.rmtree(stage / "result")
    assert follow(replace(stopped, stop_after="follow", changes=("judged=0",))) == 0


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b""), lambda file: file.write_bytes(file.read_bytes()[:-10])])
def test_a_damaged_cache(stopped: Order, damage: Callable[[Path], Any]) -> None:
    file = next(stopped.out.glob("cache/trajectories-*/00000000-*"))
    damage(file)
    with pytest.raises(InputError, match="is damaged") as caught:
        follow(stopped)
    assert str(file) in str(caught.value)
    assert "remove it: it is computed again" in str(caught.value)


def test_a_damaged_checkpoint(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    order = place(changes=("checkpoint_seconds=1e-6", "judged=0"))
    calls = []

    def fails(*_: Any, **__: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise WritingError("stop here")

    with monkeypatch.context() as patched:
        patched.setattr("distillation.run.records.Metrics.flush", fails)
        with pytest.raises(WritingError, match="stop here"):
            follow(order)
    first, second = sorted(order.out.glob("stages/follow-*/checkpoints/step-*"))
    (file,) = second.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="is damaged") as caught:
        follow(order)
    assert str(second) in str(caught.value)
    assert "remove it" in str(caught.value)
    shutil.rmtree(second)
    assert first.is_dir()
    assert follow(order) == 0


def test_two_students_are_not_left_half(place: Place, whole: Order) -> None:
    """A name that was another recipe's student is replaced whole."""
    order = place(changes=("judged=0",))
    shutil.copytree(whole.out / "student-small", order.out / "student-2")
    assert follow(order) == 0
    assert not (order.out / "student-2/profile.toml").exists()
    names = {name.partition("/")[0] for name in content(order.out)}
    assert names == {".lock", "cache", "recipe.json", "stages", "student-2"}
