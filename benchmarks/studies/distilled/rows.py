"""The rows of the ablation: stages that go on from one fork of a run, and differ in what they are named for.

All begin with the networks of the same stage, the one that follows the teacher's path, and all but those that are about time
itself take as long as the default: matching rows have as many passes through the transformer, there and back; those that follow
the path have as many as come to the same CPU seconds at the pace that the run itself had. One row stands beside the fork: the
path without encoder dropout, as long as the fork. A row's stages are named for it and for its seed, and random numbers depend on
a stage's name: so does everything after the fork, and nothing before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from distillation.recipe import Recipe
from distillation.run.dry_run import passes
from distillation.stages import Adversarial, AnyStage, MatchStage, MergeStage, TrajectoryStage
from quantization.errors import Complaint, InputError

__all__ = ["STEPS", "Fork", "Row", "all_rows", "compute", "forks", "per_step", "recipe_of", "rows"]

STEPS = 200
"""Of the default after the fork, of the student."""
HEADS = Adversarial(weight=0.01)
PATH_WEIGHT = 0.5
MERGE_PROMPTS = 400  # of five ratios each: 2000 pictures, a tenth of the row's time


@dataclass(frozen=True)
class Fork:
    """Where rows part.

    Attributes:
        follow: the stage that all go on from.
        match: the recipe's own stage after it, whose settings are the default.
    """

    follow: TrajectoryStage
    match: MatchStage

    @property
    def steps(self) -> int:
        """Of the student."""
        return len(self.match.levels) - 1


@dataclass(frozen=True)
class Row:
    """A row, of one seed or of all.

    Attributes:
        name: of it and of its stages.
        told: what it is, in words.
        stages: after the fork, the last one's networks are the row's; none for the fork itself.
        scored: the stage whose networks draw.
        steps: of the student.
        without_t5: it draws with T5 dropped.
        control: name of the row that it is compared with; none for the control itself.
    """

    name: str
    told: str
    stages: tuple[AnyStage, ...]
    scored: str
    steps: int
    without_t5: bool = False
    control: str = ""

    def seeded(self, seed: int) -> Row:
        """The same row with other random numbers after the fork."""
        own = {stage.name: f"{stage.name}-s{seed}" for stage in self.stages}
        stages = []
        for stage in self.stages:
            changes: dict[str, object] = {"name": own[stage.name], "after": own.get(stage.after, stage.after)}
            if isinstance(stage, MergeStage):
                changes["branches"] = tuple(own[branch] for branch in stage.branches)
            stages.append(msgspec.structs.replace(stage, **changes))
        return dataclasses.replace(self, stages=tuple(stages), scored=own.get(self.scored, self.scored))


def forks(recipe: Recipe) -> list[Fork]:
    """The stages of a recipe that follow a path, each with the matching after it; those of most steps first.

    Raises:
        InputError: there are none.
    """
    parted = []
    for stage in recipe.stages:
        before = recipe.stage(stage.after) if stage.after else None
        if isinstance(stage, MatchStage) and isinstance(before, TrajectoryStage) and not stage.only:
            parted.append(Fork(before, stage))
    if not parted:
        complaint = Complaint(recipe.name, "no fork", "a stage of kind match after one of kind trajectory")
        raise InputError("Nothing can be left out of this recipe.", [complaint])
    return sorted(parted, key=lambda fork: -fork.steps)


def compute(stage: TrajectoryStage | MatchStage) -> int:
    """Passes of a stage through the transformer over all samples, as forward passes; a way there and back is three."""
    step = passes(stage, kept=bool(stage.trajectories))
    total = stage.steps * step.forwards(checkpointing=False, frozen=False)
    if isinstance(stage, MatchStage):  # in which the student rolls out and the fake model learns, and no more
        warm = (len(stage.levels) - 1) + 3 * stage.fake_steps
        total -= min(stage.fake_warmup, stage.steps) * (step.forwards(checkpointing=False, frozen=False) - warm)
    return total * stage.batch


def per_step(stage: Any) -> int:
    """Passes of one step of a stage, when its fake model has its start."""
    steps = getattr(stage, "fake_warmup", 0) + 1
    return compute(_with(stage, steps=steps + 1)) - compute(_with(stage, steps=steps))


def _as_long(stage: Any, budget: float) -> Any:
    """A stage with as many steps as compute so much."""
    least = getattr(stage, "fake_warmup", 0) + 1
    steps = least + round((budget - compute(_with(stage, steps=least))) / per_step(stage))
    return _with(stage, steps=max(least, steps))


def _with(stage: Any, **changes: object) -> Any:
    return msgspec.structs.replace(stage, **changes)


def rows(fork: Fork, steps: int, pace: float = 1.0, *, brief: bool = False) -> list[Row]:
    """The rows of a fork; a brief table has the default, the baseline and what is compared with them alone.

    Args:
        fork: of the recipe.
        steps: of the default after it, of the student; all others as long.
        pace: CPU seconds of a pass that follows the path, over those of one that matches.
        brief: leave the ingredients out.
    """
    length, follow, kept = fork.steps, fork.follow, {"compare": "shared", "fake": "transition"}
    default = _with(
        fork.match, name=f"default-{length}", steps=steps, fake_warmup=min(fork.match.fake_warmup, steps // 5), **kept
    )
    budget = compute(default)

    def other(name: str, **changes: object) -> MatchStage:
        stage: MatchStage = _as_long(_with(default, name=f"{name}-{length}", **changes), budget)
        return stage

    def row(told: str, *stages: AnyStage, name: str = "", without_t5: bool = False, control: str = "control") -> Row:
        name = f"{name}-{length}" if name else stages[-1].name
        scored = stages[-1].name if stages else follow.name
        return Row(name, told, stages, scored, length, without_t5, f"{control}-{length}" if control else "")

    longer = _as_long(_with(follow, name=f"control-{length}", after=follow.name), budget / pace)
    first = [
        row("follows the teacher's path: the fork itself", name="path"),
        row("follows it for as long as the others match: the control", longer, control=""),
        row("DMD2: compared and fitted on re-noised clean predictions", other("renoised", compare="renoise", fake="predictions")),
    ]
    last = row("the default: shared levels, fake model fitted on transitions", default)
    if brief:
        return [*first, last]
    whole_t5 = other("whole-t5", without_t5=0.0)
    whole_path = _with(follow, name=f"path-whole-t5-{length}", without_t5=0.0)
    dropped = {"without_t5": True, "control": "default-dropped"}
    along = {"trajectory_weight": PATH_WEIGHT} | {key: getattr(follow, key) for key in ("trajectories", "teacher_steps", "path")}
    heads = other("heads", **along | {"trajectory_weight": 0.0}, adversarial=HEADS)  # the teacher's pictures are their real ones
    from_teacher = _with(default, name=f"cold-{length}", after=follow.after, trajectory_weight=0.0)
    return [
        *first,
        row("shared levels, fake model fitted on final pictures", other("finals", fake="finals")),
        last,
        row("TDM: compared with noise inside the segment", other("segment", compare="segment")),
        row("default without the teacher's path, for as long in all", _as_long(from_teacher, budget + pace * compute(follow))),
        row("default, along the teacher's path too, from its kept prompts", other("kept", **along)),
        row("default and adversarial heads, from kept prompts", heads),
        row("default and split fine-tuning, each half as long", *_split(fork, default, budget)),
        row("default, never without T5 after the fork", whole_t5),
        row("default, T5 dropped", default, name="default-dropped", without_t5=True, control=""),
        row("default, never without T5 after the fork, T5 dropped", whole_t5, name="whole-t5-dropped", **dropped),  # type: ignore[arg-type]
        row("the fork, T5 dropped", name="path-dropped", without_t5=True, control="path"),
        row("the path, from the teacher, never without T5", whole_path, control="path"),
        row("the same, T5 dropped", whole_path, name="path-whole-t5-dropped", without_t5=True, control="path-whole-t5"),
        row("default, matching part alone (as with guidance 1)", other("matching", guidance_levels=(0.0, 0.0))),
        row("default, guidance part alone", other("guidance", matching_weight=0.0)),
    ]


def all_rows(recipe: Recipe, steps: int, pace: Callable[[Fork], float] = lambda fork: 1.0) -> list[Row]:
    """The rows of all forks of a recipe: those of most steps in full, the others in brief.

    Args:
        recipe: the original.
        steps: as :func:`rows` takes them.
        pace: likewise, of a fork.

    Raises:
        InputError: as :func:`forks`.
    """
    return [row for place, fork in enumerate(forks(recipe)) for row in rows(fork, steps, pace(fork), brief=place > 0)]


def _split(fork: Fork, default: MatchStage, budget: int) -> Iterator[AnyStage]:
    """Half of the time together, a quarter for each half of the steps, and one network again."""
    length, middle = fork.steps, fork.steps // 2
    together = _as_long(_with(default, name=f"whole-{length}"), budget // 2)
    yield together
    slower = _with(default.optimizer, learning_rate=default.optimizer.learning_rate / 2)
    branch = _with(default, after=together.name, optimizer=slower, fake_warmup=default.fake_warmup // 2)
    for name, only in (("low", range(middle, length)), ("high", range(middle))):
        yield _as_long(_with(branch, name=f"{name}-{length}", only=tuple(only)), budget // 4)
    yield MergeStage(
        name=f"split-{length}",
        after=together.name,
        branches=(f"low-{length}", f"high-{length}"),
        levels=default.levels,
        prompts=MERGE_PROMPTS,
    )


def recipe_of(recipe: Recipe, wanted: Iterable[Row], processes: int) -> Recipe:
    """The recipe that makes rows: of the original, what leads to their fork, word for word, and so of the same identity.

    Args:
        recipe: the original.
        wanted: rows, with their seeds.
        processes: that share a batch.
    """
    wanted = list(wanted)
    own = {stage.name: stage for row in wanted for stage in row.stages}
    starts = {stage.after for stage in own.values()} - own.keys() | {row.scored for row in wanted if not row.stages}
    shared = {name for start in starts for name in recipe.behind(start)}
    before = tuple(stage for stage in recipe.stages if stage.name in shared)
    return msgspec.structs.replace(
        recipe,
        name=f"{recipe.name}-ablations",
        stages=(*before, *own.values()),
        students=(),
        processes=processes,
        judged=0,  # they are, all alike, when they are there
    )
