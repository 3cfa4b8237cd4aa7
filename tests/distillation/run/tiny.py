"""A run that takes seconds: a teacher of one block, prompts, and every kind of stage that a student can have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distillation.random_students import make_student, preset_shape
from distillation.run.order import Order
from distillation.run.pipeline import Distillation
from distillation.run.processes import Processes
from distillation.run.records import Display
from distillation.run.signals import Stop
from exporters.student.open import open_student

RECIPE = """
name = "tiny"
judged = 2
checkpoint_seconds = 1000
resolution = 32

[data]
kind = "prompts"
file = "prompts.txt"

[[stage]]
kind = "trajectory"
name = "follow"
steps = 4
batch = 2
levels = [1.0, 0.75, 0.0]
nodes = [1.0, 0.9, 0.75, 0.5, 0.0]
guidance = 2.0
teacher_steps = 4
trajectories = 70
without_t5 = 0.5
average = 0.9
optimizer = { learning_rate = 1e-3, warmup = 2 }

[[stage]]
kind = "match"
name = "match"
after = "follow"
steps = 3
batch = 2
levels = [1.0, 0.75, 0.0]
nodes = [1.0, 0.9, 0.75, 0.5, 0.0]
guidance = 2.0
teacher_steps = 4
trajectories = 70
trajectory_weight = 0.25
fake_steps = 1
fake_warmup = 1
"""
BRANCHES = """
[[stage]]
kind = "match"
name = "high"
after = "match"
steps = 2
batch = 2
levels = [1.0, 0.75, 0.0]
only = [0]
fake_steps = 1

[[stage]]
kind = "match"
name = "low"
after = "match"
steps = 2
batch = 2
levels = [1.0, 0.75, 0.0]
only = [1]
fake_steps = 1

[[stage]]
kind = "merge"
name = "merged"
after = "match"
levels = [1.0, 0.75, 0.0]
branches = ["high", "low"]
ratios = [0.0, 0.5, 1.0]
prompts = 2

[[stage]]
kind = "quantize"
name = "w4"
after = "merged"
steps = 2
batch = 2
levels = [1.0, 0.75, 0.0]
profile = "w4.toml"

[[stage]]
kind = "decoder"
name = "small"
after = "w4"
steps = 2
batch = 2
levels = [1.0, 0.75, 0.0]
channels = [4, 4, 4, 4]
blocks = [1, 1, 1, 1]
latents = 4

[[student]]
name = "student-w4"
stage = "w4"

[[student]]
name = "student-small"
stage = "small"
"""
STUDENT = """
[[student]]
name = "student-2"
stage = "match"
"""
LORA = """
[lora]
rank = 2
alpha = 4.0
targets = ["to_q", "to_k", "to_v", "net.0.proj"]  # one block has no way out for text
"""
PROFILE = """
[[rule]]
component = "*"
weights = "*"
scheme = "fp32"

[[rule]]
component = "transformer"
weights = "transformer_blocks.*"
scheme = "int4g32"
"""


def lay_out(folder: Path, recipe: str = RECIPE + STUDENT) -> Order:
    """A teacher, prompts, a profile and a recipe in a folder; the order of a run there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "teacher").exists():
        make_student(preset_shape("tiny", layers=1), folder / "teacher")
    (folder / "prompts.txt").write_text("".join(f"a red circle left of {number} squares\n" for number in range(9)))
    (folder / "w4.toml").write_text(PROFILE)
    (folder / "recipe.toml").write_text(recipe)
    return Order(str(folder / "recipe.toml"), folder / "teacher", folder / "run", device="cpu")


def content(folder: Path, leave_out: Iterable[str] = ("metrics.jsonl", "tensorboard", "stage.json")) -> dict[str, bytes]:
    """All files of a run by their names, but for those that tell times."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    named = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: file.read_bytes() for name, file in named.items() if not set(leave_out) & set(name.split("/"))}


def half_written(folder: Path) -> list[str]:
    """What a run that is over may not have left."""
    drafts = [str(place.relative_to(folder)) for place in folder.rglob("*") if place.name.endswith(".partial")]
    return drafts + [str(place.relative_to(folder)) for place in folder.rglob("checkpoints")]


def metrics(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of a stage, without times."""
    (file,) = folder.glob(f"stages/{stage}-????????/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def opened(order: Order) -> Distillation:
    """A run that is looked at and does not begin."""
    base = None if order.teacher is None else open_student(order.teacher)
    return Distillation(order.read(), order.place, base, order.out, Processes(), Display(shown=False), Stop())


def stages(folder: Path) -> dict[str, int]:
    """The stages of a run's folder that have a result, by name, and when each was made."""
    found = {}
    for file in folder.glob("stages/*/result/stage.json"):
        found[re.sub("-[0-9a-f]{8}$", "", file.parents[1].name)] = file.stat().st_mtime_ns
    return found
