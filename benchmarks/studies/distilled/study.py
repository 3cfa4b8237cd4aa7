"""Who is asked what, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import msgspec
import numpy as np

from benchmarks.measure.process import describe_machine
from benchmarks.studies.distilled.captions import Captions, kinds
from benchmarks.studies.distilled.figures import Diversity, Scored, diversity, scored, seed_spread
from benchmarks.studies.distilled.run_folder import RunFolder, builtin
from benchmarks.studies.distilled.subjects import Control, Network, Subject
from benchmarks.studies.distilled.verdicts import Verdicts
from distillation.networks.drawing import teacher_levels
from distillation.stages import StudentStage

__all__ = ["Amounts", "Study", "circumstances", "study"]

PLAIN_STEPS, OFF_LEVEL_STEPS = (4, 2, 1), (3, 6)
PAST, WITHIN = "past CLIP's window", "within it"
LAW = Control("the renderer")
CONTROLS = (
    Control("true pictures (control)", seed=2),
    Control("one place for each kind (control)", "one place"),
    Control("one picture for each caption (control)", "one a caption"),
)


@dataclass(frozen=True)
class Amounts:
    """How much is measured.

    Attributes:
        prompts: captions of the world.
        old_prompts: captions of the built-in student's world.
        various: captions that tell how various pictures are, the first of ``prompts``.
        choosing: captions on which the teacher's guidance is chosen, the first of ``prompts``: it draws slowly.
        scales: guidance scales of the teacher.
        seeds: of the teacher's noise, two or more.
    """

    prompts: int = 10_000
    old_prompts: int = 3000
    various: int = 3000
    choosing: int = 2000
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    seeds: int = 2


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's networks are worth.

    Attributes:
        recipe: of the run.
        circumstances: what the figures depend on, in words.
        best: the teacher, at the scale at which most of its pictures are right: the reference. That it is chosen on captions
            that it is then measured on makes it look better by chance, never a student.
        new: on the world's captions, paired with the reference; the teacher's other scales on those that they were chosen on.
        various: how various right pictures are.
        teacher_seeds: the share of right pictures of each seed of the reference's noise, on the same captions.
        old: on the old world's captions by its own scorer, paired with the built-in student.
    """

    recipe: str
    circumstances: dict[str, str]
    best: str
    new: tuple[Scored, ...]
    various: tuple[Diversity, ...]
    teacher_seeds: tuple[float, ...]
    old: tuple[Scored, ...]


def circumstances() -> dict[str, str]:
    """What the last bits of a picture depend on, and so a verdict now and then."""
    import torch

    versions = {name: version(name) for name in ("torch", "diffusers", "numpy")}
    return {**describe_machine(1), "instruction_set": torch.backends.cpu.get_cpu_capability(), **versions}


def study(run: RunFolder, verdicts: Verdicts, amounts: Amounts, stages: Sequence[str] = ()) -> tuple[Study, list[Network]]:
    """Measure all.

    Args:
        run: its networks.
        verdicts: where theirs are kept.
        amounts: how much is measured.
        stages: names of stages that are measured beside the students.

    Returns:
        The figures; and the teacher at its best with the students.

    Raises:
        InputError: a stage was not made, or draws what is not finite.
    """
    students = [*run.students(), *(run.stage(name) for name in stages)]
    captions = Captions()
    teachers = [run.teacher().named(f"teacher, guidance {scale:g}", guidance=scale) for scale in amounts.scales]
    few = min(amounts.choosing, amounts.prompts)
    tried = {one: verdicts.of(one, captions, few) for one in teachers}
    best = max(teachers, key=lambda one: tried[one]["right"].mean())
    others = [*_plain(run), *_students(students)]
    asked = {one: verdicts.of(one, captions, amounts.prompts) for one in (best, *others)}
    groups = _groups(run, captions, amounts.prompts)
    new = []
    for one, got in (tried | asked).items():
        first = {name: mask[: len(got)] for name, mask in groups.items()}
        new.append(scored(one.name, one.steps, got, first, None if one is best else asked[best][: len(got)]))
    various, seeds = _various(verdicts, captions, amounts, [best, *students], asked)
    facts = Study(
        recipe=run.recipe.name,
        circumstances=circumstances(),
        best=best.name,
        new=tuple(new),
        various=tuple(various),
        teacher_seeds=tuple(seeds),
        old=tuple(_old(verdicts, amounts, [best, *_with_and_without(students)])),
    )
    return facts, [best, *students]


def _plain(run: RunFolder) -> list[Network]:
    """The teacher in few steps, as it is: what a student has to beat."""
    guided = next((stage.guidance for stage in run.recipe.stages if isinstance(stage, StudentStage)), 2.0)
    return [
        run.teacher().named(f"teacher, guidance {scale:g}, {steps} steps", levels=teacher_levels(steps), guidance=scale)
        for steps in PLAIN_STEPS
        for scale in dict.fromkeys((1.0, guided))
    ]


def _with_and_without(students: Sequence[Network]) -> list[Network]:
    pairs = [(one, one.named(f"{one.name}, T5 dropped", without_t5=True)) for one in students]
    return [one for pair in pairs for one in pair]


def _students(students: Sequence[Network]) -> list[Network]:
    """With T5 and without, and the first of four steps off the levels that it has learned at."""
    four = [one for one in students if one.steps == 4][:1]
    off = [one.named(f"{one.name} in {steps} steps", levels=teacher_levels(steps)) for one in four for steps in OFF_LEVEL_STEPS]
    return [*_with_and_without(students), *off]


def _groups(run: RunFolder, captions: Captions, count: int) -> dict[str, np.ndarray]:
    """Captions by kind, and by whether CLIP's window holds them."""
    from exporters.quiet import quiet_libraries

    quiet_libraries()
    asked = captions.those(range(count))
    by_kind = kinds(asked)
    tokenizer = run.run.lineage(run.teacher_stage).tokenizer("text_encoder")
    lengths = np.array([len(tokens) for tokens in tokenizer([str(one) for one in asked]).input_ids])
    past = lengths > tokenizer.model_max_length
    return {**{str(kind): by_kind == kind for kind in np.unique(by_kind)}, PAST: past, WITHIN: ~past}


def _various(
    verdicts: Verdicts, captions: Captions, amounts: Amounts, networks: Sequence[Network], asked: dict[Network, np.ndarray]
) -> tuple[list[Diversity], list[float]]:
    """How various pictures are, of networks and controls; and how right the first network's are, for each seed."""
    count = min(amounts.various, amounts.prompts)
    by_kind = kinds(captions.those(range(count)))

    def again(one: Network | Control, seed: int) -> np.ndarray:
        other = Control(one.name, one.way, seed) if isinstance(one, Control) else one.named(f"{one.name}, seed {seed}", seed=seed)
        return verdicts.of(other, captions, count)

    law = verdicts.of(LAW, captions, count)
    true_spread = seed_spread(law, again(LAW, 1))
    assert true_spread is not None  # the scorer passes true pictures
    rows = [
        diversity(one.name, verdicts.of(one, captions, count), again(one, one.seed + 1), by_kind, law, true_spread)
        for one in CONTROLS
    ]
    teacher = networks[0]
    for one, got in asked.items():
        second = again(one, 1) if one in networks else None
        rows.append(diversity(one.name, got[:count], second, by_kind, law, true_spread))
    seeds = [asked[teacher][:count], *(again(teacher, seed) for seed in range(1, amounts.seeds))]
    return rows, [float(got["right"].mean()) for got in seeds]


def _old(verdicts: Verdicts, amounts: Amounts, networks: Sequence[Network]) -> list[Scored]:
    """On the captions, and by the scorer, of the student that this package ships."""
    captions, reference = Captions("old"), builtin()
    by_kind = kinds(captions.those(range(amounts.old_prompts)))
    groups = {str(kind): by_kind == kind for kind in np.unique(by_kind)}
    control = Control("true pictures (control)")
    shipped = verdicts.of(reference, captions, amounts.old_prompts)
    rows = [scored(reference.name, reference.steps, shipped, groups, None)]
    others: tuple[Subject, ...] = (control, *_with_and_without([reference])[1:], *networks)
    got = ((one, verdicts.of(one, captions, amounts.old_prompts)) for one in others)
    return [*rows, *(scored(one.name, one.steps, records, groups, shipped) for one, records in got)]
