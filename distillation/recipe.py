"""A recipe: the stages of a distillation in a file, each with the stage that it goes on from.

::

    name = "shapes-cpu"
    seed = 0

    [[stage]]
    kind = "flow"
    name = "teacher"
    steps = 12000

    [[stage]]
    kind = "trajectory"
    name = "follow-4"
    after = "teacher"
    steps = 2500

Stages are a tree: those that go on from one stage share it, and all before it. A stage's identity is a digest of itself and of
all that it goes on from, the seed included: what was trained for one recipe is taken up by another exactly where both say the
same.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from distillation.data.settings import AnyData, ShapesData
from distillation.levels import checked
from distillation.stages import (
    AnyStage,
    Count,
    DecoderStage,
    Lora,
    MatchStage,
    MergeStage,
    Positive,
    QuantizeStage,
    Stage,
    StudentStage,
    TextStage,
    TrajectoryStage,
    VaeStage,
)
from distillation.write import Dtype
from exporters.errors import Complaint, InputError
from quantization.files import read_toml

__all__ = ["LORA_SUFFIX", "Publication", "Recipe", "RecipeError", "branches_of", "load_recipe", "parse_recipe", "path_of"]


#: Of a recipe, beside its stages.
TABLES = ("data", "lora")
#: Of a run's folder.
OWN_FOLDERS = ("cache", "stages", "tensorboard")
#: What the folder of a student's adapter ends with.
LORA_SUFFIX = "-lora"


class RecipeError(InputError):
    """A recipe cannot be followed."""


class Publication(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A student that the run hands out: a folder as diffusers has it.

    Attributes:
        name: of the folder.
        stage: whose networks it has.
        dtype: that its weights are stored in.
        variants: siblings in the same folder, as diffusers has variants: by name, the stage whose networks they have. What they
            share with the student is stored once; each has a ``student.NAME.json`` of its own.
    """

    name: str
    stage: str
    dtype: Dtype = "fp32"
    variants: dict[str, str] = msgspec.field(default_factory=dict)


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stages, and what all of them share.

    Attributes:
        name: of the recipe.
        stages: in the order in which they run.
        students: that the run hands out.
        data: where samples come from.
        seed: of all random numbers.
        model: that it is written for: what a dry run without a teacher is of.
        resolution: of the pictures, in pixels; the teacher's own where 0.
        processes: that share a batch on one machine's CPU, unless a launcher says how many.
        devices: that it is written for, which a dry run is of: a launcher starts as many processes.
        lora: student and fake model are adapters on the teacher; three networks where it is absent.
        half: compute transformers in bfloat16; weights are moved in fp32.
        checkpointing: compute blocks again on the way back, for memory.
        compile: compile each block, on GPUs.
        shard: share networks out over the processes, a block at a time.
        checkpoint_seconds: between checkpoints.
        keep_embeddings: encode the prompts of samples that are kept once, too; SD3.5's are 2.7 MB each.
        judged: prompts that say at the end of a student's stage how good it is; 0 for none.
    """

    name: str
    stages: tuple[AnyStage, ...] = msgspec.field(name="stage")
    students: tuple[Publication, ...] = msgspec.field(name="student", default=())
    data: AnyData = ShapesData()
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    model: Literal["shapes", "sd35-medium"] = "shapes"
    resolution: Annotated[int, msgspec.Meta(ge=0, multiple_of=16)] = 0
    processes: Positive = 1
    devices: Positive = 1
    lora: Lora | None = None
    half: bool = False
    checkpointing: bool = False
    compile: bool = False
    shard: bool = False
    checkpoint_seconds: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    keep_embeddings: bool = False
    judged: Count = 500

    def stage(self, name: str) -> AnyStage:
        """The stage of that name.

        Raises:
            RecipeError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise RecipeError(f"{self.name} has no such stage.", [Complaint("stage", "not in the recipe", names, name)])

    def way_to(self, name: str) -> tuple[AnyStage, ...]:
        """The stages that lead to one, the first of all first and itself last."""
        stage = self.stage(name)
        return (*self.way_to(stage.after), stage) if stage.after else (stage,)

    def behind(self, name: str) -> list[str]:
        """The names of all stages that one depends on, its way and the branches on it, and its own."""
        way = self.way_to(name)
        return [*(one for branch in _branches(way) for one in self.behind(branch)), *(stage.name for stage in way)]

    def identity(self, name: str, given: str = "") -> str:
        """A digest of a stage, of all that it goes on from, and of the seed.

        Args:
            name: of the stage.
            given: a digest of what the whole run begins from: teacher and data.
        """
        way = self.way_to(name)
        contents, branches = [_content(stage) for stage in way], [self.identity(branch, given) for branch in _branches(way)]
        lora = msgspec.to_builtins(self.lora)
        half = self.half and not all(isinstance(stage, TextStage | VaeStage) for stage in way)  # those compute in fp32 anyway
        told = json.dumps([self.seed, given, contents, branches, lora, half, self.resolution], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:32]


def branches_of(stage: AnyStage) -> tuple[str, ...]:
    """The names of the stages that a merge puts together; of another stage none."""
    return stage.branches if isinstance(stage, MergeStage) else ()


def path_of(recipe: Recipe, stage: Stage) -> StudentStage | None:
    """The stage whose student draws what a stage follows; none where the teacher does."""
    if not isinstance(stage, StudentStage) or not stage.path:
        return None
    path = recipe.stage(stage.path)
    assert isinstance(path, StudentStage)  # as the recipe was checked
    return path


def _branches(way: Sequence[AnyStage]) -> list[str]:
    """Those of all merges on a way."""
    return [branch for stage in way for branch in branches_of(stage)]


def load_recipe(file: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe. ``extends = "other.toml"`` begins it with another's stages and settings.

    Args:
        file: TOML.
        changes: ``seed=1``, ``data.kind=prompts`` or ``stage.key=value``, the value in TOML;
            ``teacher.optimizer.learning_rate=1e-3``; ``extends=other.toml``: what it adds, to another recipe.

    Raises:
        RecipeError: it cannot be read, or a change names nothing in it, or :func:`parse_recipe` refuses it.
    """
    bases = [change for change in changes if change.partition("=")[0].strip() == "extends"]
    content = _read(file, bases)
    for change in changes:
        if change not in bases:
            _apply(content, change)
    return parse_recipe(content, str(file))


def _read(file: Path, bases: Sequence[str]) -> dict[str, Any]:
    """A recipe's tables, after those of the recipe that it extends.

    Args:
        file: TOML.
        bases: changes of what it extends; the last holds.

    Raises:
        RecipeError: a file cannot be read, or is no recipe; a base is given for a recipe that extends none.
    """
    content = _read_one(file)
    for change in bases:
        if "extends" not in content:
            complaint = Complaint("--set", "the recipe extends none", "a recipe that begins with `extends`", change)
            raise RecipeError("A change names nothing in the recipe.", [complaint])
        _apply(content, change)
    above = content.pop("extends", None)
    if above is None:
        return content
    if not isinstance(above, str) or (file.parent / above).resolve() == file.resolve():
        raise RecipeError(
            "The recipe cannot be followed.", [Complaint(str(file), "extends", "another recipe's file", repr(above))]
        )
    base = _read_one(file.parent / above)
    if "extends" in base:
        raise RecipeError(
            "The recipe cannot be followed.", [Complaint(str(file), "extends a recipe that extends another", above)]
        )
    own = content.get("stage", [])
    if not isinstance(own, list) or not isinstance(base.get("stage", []), list):
        return content  # parsing says what is wrong
    return {**base, "student": [], **content, "stage": [*base.get("stage", []), *own]}


def _read_one(file: Path) -> dict[str, Any]:
    """One file's tables; the profiles that it names lie beside it.

    Raises:
        RecipeError: it cannot be read.
    """
    content = read_toml(file, "recipe", RecipeError)
    for stage in content.get("stage", []) if isinstance(content.get("stage"), list) else []:
        if isinstance(stage, dict) and isinstance(stage.get("profile"), str):
            stage["profile"] = str(file.parent / stage["profile"])
    return content


def parse_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Check what a recipe says.

    Raises:
        RecipeError: unknown or missing keys, wrong values, names that are there twice or lead nowhere, levels that do not fall.
    """
    if (place := _not_finite(content, "recipe")) is not None:
        raise RecipeError("The recipe cannot be followed.", [Complaint(where, f"{place} is no finite number")])
    try:
        recipe = msgspec.convert(content, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError("The recipe cannot be followed.", [Complaint(where, str(error))]) from error
    complaints = [*_stage_complaints(recipe, where), *_student_complaints(recipe, where)]
    if complaints := complaints or [*_way_complaints(recipe, where)]:  # ways can be followed where all names lead somewhere
        raise RecipeError("The recipe cannot be followed.", complaints)
    return recipe


def _stage_complaints(recipe: Recipe, where: str) -> Iterator[Complaint]:
    before: set[str] = set()
    for stage in recipe.stages:
        if stage.name in before or not re.fullmatch(r"[\w-]+", stage.name):
            yield Complaint(where, f"stage {stage.name!r}", "a name of its own, of letters, digits, - and _")
        if stage.after and stage.after not in before:
            yield Complaint(where, f"stage {stage.name}: after", "a stage before it", stage.after)
        if isinstance(stage, MergeStage):
            for branch in stage.branches:
                if branch not in before or recipe.stage(branch).after != stage.after:
                    expected = f"stages before it that go on from {stage.after!r}, as it does"
                    yield Complaint(where, f"stage {stage.name}: branches", expected, branch)
                elif getattr(recipe.stage(branch), "levels", None) != stage.levels:
                    yield Complaint(where, f"stage {stage.name}: branches", "stages of its own levels", branch)
        if isinstance(stage, StudentStage):
            yield from _level_complaints(stage, where)
        before.add(stage.name)
    if not recipe.stages:
        yield Complaint(where, "has no stages", "at least one [[stage]] table")


def _level_complaints(stage: StudentStage, where: str) -> Iterator[Complaint]:
    for levels in filter(None, (stage.levels, stage.nodes)):
        try:
            checked(levels, f"stage {stage.name}")
        except InputError as error:
            yield Complaint(where, error.headline)
    if wrong := [index for index in stage.only if index >= len(stage.levels) - 1]:
        yield Complaint(where, f"stage {stage.name}: only", f"steps of {len(stage.levels) - 1}, counted from 0", str(wrong))
    if stage.nodes and (strangers := set(stage.levels) - set(stage.nodes)):
        yield Complaint(where, f"stage {stage.name}: nodes", "its levels among them", f"without {sorted(strangers)}")


def _path_complaints(recipe: Recipe, stage: StudentStage, where: str) -> Iterator[Complaint]:
    """Of a path that is another stage's student's."""
    draws = {one.name: one for one in recipe.way_to(stage.after)}.get(stage.path) if stage.after else None
    if not isinstance(draws, StudentStage):
        yield Complaint(where, f"stage {stage.name}: path", "a stage with levels that it goes on from", stage.path)
    elif strangers := set(stage.nodes or stage.levels) - set(draws.levels):
        expected = f"a stage that comes through {sorted(strangers)}"
        yield Complaint(where, f"stage {stage.name}: path", expected, f"{stage.path} of {list(draws.levels)}")


def _way_complaints(recipe: Recipe, where: str) -> Iterator[Complaint]:
    """What a stage or a student cannot be because of the stages that it goes on from."""
    for stage in recipe.stages:
        if isinstance(stage, StudentStage) and stage.path:
            yield from _path_complaints(recipe, stage, where)
        mover = _mover(recipe, stage.after) if stage.after else None
        if isinstance(stage, MatchStage) and stage.adversarial.weight and recipe.shard and recipe.lora is None:
            expected = "0 where shard = true: heads look into the fake model's blocks, past torch's gathering of its weights"
            yield Complaint(where, f"stage {stage.name}: adversarial.weight", expected, f"{stage.adversarial.weight:g}")
        learns = recipe.lora is not None and isinstance(stage, TrajectoryStage | MatchStage)
        if learns and isinstance(mover, MergeStage | QuantizeStage):
            expected = "a stage of kind trajectory or match, or a teacher: the recipe has [lora]"
            yield Complaint(where, f"stage {stage.name}: after", expected, f"{stage.after}, whose transformer has no adapter")
    for student in recipe.students:
        if student.dtype != "fp32" and isinstance(_mover(recipe, student.stage), QuantizeStage):
            expected = "fp32: codes of weights that are rounded before are others than those that were learned"
            yield Complaint(where, f"student {student.name}: dtype", expected, student.dtype)
        for name, source in student.variants.items():
            if isinstance(_mover(recipe, source), QuantizeStage):
                expected = "a stage of another kind: a profile goes with a student of its own"
                yield Complaint(where, f"student {student.name}: variants.{name}", expected, f"{source}, which quantizes")


def _mover(recipe: Recipe, name: str) -> AnyStage | None:
    """The last stage on a way that has moved the transformer's weights."""
    kept = (TextStage, VaeStage, DecoderStage)
    return next((stage for stage in reversed(recipe.way_to(name)) if not isinstance(stage, kept)), None)


def _student_complaints(recipe: Recipe, where: str) -> Iterator[Complaint]:
    stages, names = {stage.name for stage in recipe.stages}, [student.name for student in recipe.students]
    for student in recipe.students:
        if student.stage not in stages:
            yield Complaint(where, f"student {student.name}: stage", "a stage of the recipe", student.stage)
        for name, stage in student.variants.items():
            if stage not in stages:
                yield Complaint(where, f"student {student.name}: variants.{name}", "a stage of the recipe", stage)
            if not re.fullmatch(r"[\w-]+", name):
                yield Complaint(where, f"student {student.name}: variants", "names of letters, digits, - and _", repr(name))
        if recipe.lora is not None and f"{student.name}{LORA_SUFFIX}" in names:
            yield Complaint(
                where, f"student {student.name}{LORA_SUFFIX}", f"another name: the adapter of {student.name} goes there"
            )
        if names.count(student.name) > 1 or not re.fullmatch(r"[\w-]+", student.name) or student.name in OWN_FOLDERS:
            expected = f"a name of its own, of letters, digits, - and _; not {', '.join(OWN_FOLDERS)}"
            yield Complaint(where, f"student {student.name!r}", expected)


def _content(stage: AnyStage) -> Any:
    """What a stage says, without the place of its profile: what that says is the run's to read."""
    told: dict[str, Any] = msgspec.to_builtins(stage)
    return {**told, "profile": ""} if isinstance(stage, QuantizeStage) else told


def _apply(content: dict[str, Any], change: str) -> None:
    """Change one value in place."""
    path, equals, text = change.partition("=")
    *way, key = path.strip().split(".")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word needs no quotes
    table: Any = content
    if way:
        lists = [entries for of in ("stage", "student") if isinstance(entries := content.get(of), list)]
        named = [one for entries in lists for one in entries if isinstance(one, dict) and one.get("name") == way[0]]
        table = named[0] if named else content.setdefault(way[0], {}) if way[0] in TABLES else None
        for name in way[1:]:
            table = table.setdefault(name, {}) if isinstance(table, dict) else None
    if not equals or not key or not isinstance(table, dict):
        example = "--set teacher.steps=100"
        raise RecipeError("A change names nothing in the recipe.", [Complaint("--set", "no such place", example, change)])
    table[key] = value


def _not_finite(value: Any, where: str) -> str | None:
    """Where a number is infinite or none, as TOML can say it."""
    if isinstance(value, float) and not math.isfinite(value):
        return where
    parts: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        parts = [(f"{where}.{key}", part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{where}[{index}]", part) for index, part in enumerate(value)]
    return next((place for name, part in parts if (place := _not_finite(part, name)) is not None), None)
