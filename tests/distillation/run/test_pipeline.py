"""Whole runs: each stage goes on from the one before, and only what a change concerns is made anew."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from distillation.data.open import open_source
from distillation.data.settings import ShapesData
from distillation.data.write import write_latents
from distillation.flow import euler
from distillation.networks.roles import VelocityTransformer
from distillation.random_students import make_student, preset_shape
from distillation.run.jobs import job_of
from distillation.run.order import Order
from distillation.run.start import follow
from tests.distillation.run.tiny import (
    BRANCHES,
    LORA,
    PROFILE,
    RECIPE,
    STUDENT,
    content,
    half_written,
    lay_out,
    metrics,
    opened,
    stages,
)

PATH = """
[[stage]]
kind = "trajectory"
name = "one"
after = "merged"
path = "follow"
steps = 1
batch = 2
levels = [1.0, 0.0]
guidance = 2.0
without_t5 = 0.5
trajectories = {}
"""
LATENTS = 'kind = "latents"\npath = "latents"'
ALL = ["follow", "match", "high", "low", "merged", "w4", "small"]


def copied(order: Order, folder: Path) -> Order:
    """The same run elsewhere, to be changed."""
    shutil.copytree(order.out.parent, folder)
    return replace(order, recipe=str(folder / "recipe.toml"), teacher=folder / "teacher", out=folder / "run")


def test_every_stage_has_left_its_result(whole: Order) -> None:
    assert sorted(stages(whole.out)) == sorted(ALL)
    assert half_written(whole.out) == []
    assert [line["step"] for line in metrics(whole.out, "follow")] == [1, 2, 3, 4]
    left = {folder.parent.name.rpartition("-")[0]: folder for folder in whole.out.glob("stages/*/result")}
    assert (left["small"] / "vae").is_dir()
    assert not (left["small"] / "transformer").exists()
    assert all((left[name] / "transformer").is_dir() for name in ALL[:-1])
    figures = json.loads((left["merged"] / "ratios.json").read_text())
    assert str(figures["taken"]) == max(figures["figures"], key=figures["figures"].get)
    assert list(figures["figures"]) == ["0.0", "0.5", "1.0"]


def test_every_stage_is_judged_and_drawn_beside_its_teacher(whole: Order) -> None:
    for folder in whole.out.glob("stages/*"):
        judged = json.loads((folder / "judged.json").read_text())
        assert judged["prompts"] == 2
        assert 0 < judged["latent_db"] < 100
        with Image.open(folder / "grid.png") as grid:
            assert grid.size == (2 * 32, 2 * 32)  # two prompts; the student's row, the teacher's


def test_a_run_that_is_done_does_nothing_and_writes_nothing(whole: Order) -> None:
    assert follow(whole) == 0  # another test may have let the same folder follow another recipe since
    before = {file: file.stat().st_mtime_ns for file in [whole.out, *whole.out.rglob("*")]}
    assert follow(whole) == 0
    assert {file: file.stat().st_mtime_ns for file in [whole.out, *whole.out.rglob("*")]} == before


@pytest.mark.parametrize("kept", [0, 70], ids=["drawn for each step", "kept"])
def test_a_path_may_be_another_student_s(whole: Order, tmp_path: Path, kept: int) -> None:
    """Its steps as they are when that student draws: no guidance, T5 told, whatever the stage says of itself."""
    order = copied(whole, tmp_path / "run")
    recipe = Path(order.recipe)
    recipe.write_text(recipe.read_text() + PATH.format(kept))
    run = opened(order)
    stage = run.recipe.stage("one")
    batch = job_of(stage, run._site(stage)).batches(3)
    assert batch.states is not None
    network = VelocityTransformer(run.lineage("follow").component("transformer"))
    with torch.no_grad():
        drawn = euler(network, batch.noise, (1.0, 0.75, 0.0), batch.told_teacher)
    assert bool(batch.states.isfinite().all())
    assert torch.equal(batch.states[:, 0], batch.noise)
    # kept states are fp16: half a unit in the last place of numbers below 8
    assert torch.allclose(batch.states[:, 1], drawn[-1], rtol=0, atol=2**-9 if kept else 1e-5)
    assert not torch.allclose(batch.states[:, 1], drawn[1], rtol=0, atol=0.1)


def identities(order: Order) -> dict[str, str]:
    run = opened(order)
    return {stage.name: run._identity(stage.name) for stage in run.recipe.stages}


@pytest.mark.parametrize(
    ("change", "made"),
    [
        ("small.steps=1", ["small"]),
        ("merged.ratios=[0.0, 1.0]", ["merged", "w4", "small"]),
        ("low.steps=1", ["low", "merged", "w4", "small"]),
        ("match.optimizer.clip=2", ALL[1:]),
        ("seed=5", ALL),
        ("resolution=48", ALL),
        ("half=true", ALL),
        ("lora.rank=2", ALL),
        ("name='other'", []),
        ("judged=1", []),
        ("checkpoint_seconds=5", []),
    ],
)
def test_a_change_concerns(whole: Order, change: str, made: list[str]) -> None:
    before = identities(whole)
    after = identities(replace(whole, changes=(change,)) if "lora" not in change else with_lora(whole))
    assert [name for name in ALL if after[name] != before[name]] == made


def with_lora(order: Order) -> Order:
    file = Path(order.recipe).with_name("lora.toml")
    file.write_text(RECIPE + BRANCHES + LORA)
    return replace(order, recipe=str(file))


@pytest.mark.parametrize(
    ("what", "made"), [("prompts", ALL), ("teacher", ALL), ("profile", ["w4", "small"]), ("a profile's comment", [])]
)
def test_a_changed_file_concerns(whole: Order, tmp_path: Path, what: str, made: list[str]) -> None:
    """The recipe says the same: what its files say is another thing."""
    before, order = identities(whole), lay_out(tmp_path, RECIPE + STUDENT + BRANCHES)
    assert identities(order) == before
    if what == "prompts":
        (tmp_path / "prompts.txt").write_text("a blue square\n")
    elif what == "teacher":
        shutil.rmtree(order.teacher)
        make_student(preset_shape("tiny", layers=1), order.teacher, seed=1)
    else:
        changed = PROFILE.replace("int4g32", "int8") if what == "profile" else f"# mine\n{PROFILE}"
        (tmp_path / "w4.toml").write_text(changed)
    after = identities(order)
    assert [name for name in ALL if after[name] != before[name]] == made


def test_a_change_makes_anew_what_it_concerns_and_nothing_else(whole: Order, tmp_path: Path) -> None:
    order = replace(copied(whole, tmp_path / "x"), changes=("low.steps=1",))
    before = {file: file.stat().st_mtime_ns for file in order.out.glob("stages/*/result/stage.json")}
    assert follow(order) == 0
    after = {file: file.stat().st_mtime_ns for file in order.out.glob("stages/*/result/stage.json")}
    assert before.items() <= after.items()
    new = sorted(file.parents[1].name.rpartition("-")[0] for file in after.keys() - before.keys())
    assert new == ["low", "merged", "small", "w4"]
    assert content(order.out)["student-2/distillation.json"] == content(whole.out)["student-2/distillation.json"]
    assert content(order.out)["student-w4/distillation.json"] != content(whole.out)["student-w4/distillation.json"]


def test_another_number_of_prompts_judges_anew(whole: Order, tmp_path: Path) -> None:
    order = replace(copied(whole, tmp_path / "x"), changes=("judged=1",), stop_after="follow")
    assert follow(order) == 0
    assert json.loads(next(order.out.glob("stages/follow-*/judged.json")).read_text())["prompts"] == 1


def test_trajectories_are_of_their_size(whole: Order, tmp_path: Path) -> None:
    """Those of another size, from the same teacher and prompts, are others."""
    order = replace(copied(whole, tmp_path / "x"), changes=("resolution=48", "judged=0"), stop_after="follow")
    assert follow(order) == 0
    assert len(list(order.out.glob("cache/trajectories-*"))) == 2


def test_stop_after_and_an_ablation_that_shares_a_prefix(given: Path, tmp_path: Path) -> None:
    order = replace(lay_out(given), out=tmp_path / "run")
    assert follow(replace(order, stop_after="follow")) == 0
    first = stages(order.out)
    assert list(first) == ["follow"]
    assert not (order.out / "student-2").exists()
    other = RECIPE.replace('name = "match"', 'name = "ablation"').replace(
        "fake_warmup = 1", 'fake_warmup = 0\ncompare = "renoise"'
    )
    (given / "other.toml").write_text(other.replace('name = "tiny"', 'name = "other"'))
    assert follow(replace(order, recipe=str(given / "other.toml"))) == 0
    assert follow(order) == 0
    assert stages(order.out).keys() == {"follow", "match", "ablation"}
    assert stages(order.out)["follow"] == first["follow"]
    assert len(list((order.out / "cache").iterdir())) == 1
    assert (order.out / "student-2/model_index.json").is_file()


def test_a_run_gives_the_same_weights_anywhere(whole: Order, given: Path, tmp_path: Path) -> None:
    """Another folder, another length: what both have is bit for bit the same."""
    order = replace(lay_out(given), out=tmp_path / "run")
    assert follow(order) == 0
    here, there = content(order.out / "stages"), content(whole.out / "stages")
    assert here.items() <= there.items()
    assert any(name.endswith(".safetensors") for name in here)
    assert not any(str(tmp_path).encode() in text for name, text in here.items() if name.endswith(".json"))


def test_what_a_killed_run_was_writing_is_removed(whole: Order, tmp_path: Path) -> None:
    order = copied(whole, tmp_path / "x")
    (stage,) = order.out.glob("stages/match-*")
    for folder in (stage / ".result.0123456789abcdef.partial", stage / "checkpoints/.step-00000002.partial"):
        folder.mkdir(parents=True)
        (folder / "half").write_text("x")
    (order.out / "cache/.00000000-64.npy.0123456789abcdef.partial").write_text("x")
    (order.out / ".student-2.0123456789abcdef.partial").mkdir()
    (order.out / ".mine").write_text("x")
    assert follow(order) == 0
    assert half_written(order.out) == []
    assert (order.out / ".mine").is_file()
    assert content(order.out).keys() - content(whole.out).keys() == {".mine"}


def test_what_does_not_learn_is_held_in_half(whole: Order, tmp_path: Path) -> None:
    """Teacher and text encoders in bfloat16; what is left is in fp32 all the same: merged weights are no bfloat16 numbers."""
    order = replace(lay_out(tmp_path, RECIPE + BRANCHES), changes=("half=true", "judged=0"), stop_after="w4")
    run = opened(order)
    site = run._site(run.recipe.stage("follow"))
    assert {parameter.dtype for parameter in site.velocity(site.teacher).parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in site.velocity(site.teacher, learns=True).parameters()} == {torch.float32}
    encoders = site.encoders(96)
    assert {parameter.dtype for parameter in encoders.parameters()} == {torch.bfloat16}
    assert site.told(encoders, [0]).tokens.dtype == site.untold(encoders, 96).tokens.dtype == torch.float32
    assert follow(order) == 0
    for stage in ("follow", "merged", "w4"):
        (file,) = order.out.glob(f"stages/{stage}-*/result/transformer/*.safetensors")
        weight = load_file(file)["transformer_blocks.0.attn.to_q.weight"]
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, weight.bfloat16().float())


def test_heads_take_the_data_s_latents_for_real_where_there_is_no_path(tmp_path: Path) -> None:
    """Each beside its own prompt; and the stage runs."""
    heads = "trajectories = 0\nadversarial = { weight = 0.01 }\nfake_warmup = 1"
    alone = RECIPE[: RECIPE.index("[[stage]]")] + RECIPE[RECIPE.index('[[stage]]\nkind = "match"') :].replace(
        'after = "follow"\n', ""
    )
    alone = alone.replace("trajectories = 70\ntrajectory_weight = 0.25\n", "").replace("fake_warmup = 1", heads)
    recipe = alone.replace("resolution = 32", "resolution = 64").replace('kind = "prompts"\nfile = "prompts.txt"', LATENTS)
    order = lay_out(tmp_path, recipe)
    vae = AutoencoderKL.from_pretrained(tmp_path / "teacher", subfolder="vae")
    write_latents(open_source(ShapesData(count=5, seed=2), tmp_path), vae, None, tmp_path / "latents")
    run = opened(order)
    stage = run.recipe.stage("match")
    site = run._site(stage)
    batch, numbers = job_of(stage, site).batches(0), site.numbers(stage, 0)
    assert torch.equal(batch.x0, torch.stack([site.source.latent(number).float() for number in numbers]))
    assert follow(order) == 0
    assert stages(order.out).keys() == {"match"}
    assert all("heads" in " ".join(line) for line in metrics(order.out, "match")[1:])
