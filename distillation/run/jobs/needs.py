"""What stages need before they can begin, told before the first of them does: hours lie between; and which are to be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from distillation.data.settings import ShapesData
from distillation.data.source import Source
from distillation.networks.roles import LATENT_PIXELS
from distillation.recipe import Recipe, branches_of
from distillation.run.lineage import CLIPS, T5
from distillation.run.processes import Processes
from distillation.stages import AnyStage, DecoderStage, FlowStage, MatchStage, QuantizeStage, StudentStage, TextStage, VaeStage
from exporters.errors import Complaint, InputError
from exporters.student.student import Student
from quantization.profile import Profile

__all__ = ["check_needs", "check_profile", "left", "stages_to_make", "teacher_of"]

COMPONENT = "transformer"


def check_needs(recipe: Recipe, base: Student | None, source: Source, processes: Processes) -> None:
    """Refuse a run one of whose stages could not begin.

    Args:
        recipe: of the run.
        base: the teacher that it was given.
        source: of prompts and pictures.
        processes: that share its batches.

    Raises:
        InputError: something is missing, all of it at once; or a batch cannot be shared.
    """
    there: dict[str, set[str]] = {"": set() if base is None else set(base.weights)}
    complaints: list[Complaint] = []
    for stage in recipe.stages:
        processes.samples(stage.batch, f"stage {stage.name}")
        before = there[stage.after]
        missing = [name for name in _needed(stage, recipe, source) if name not in before]
        complaints += [Complaint(f"stage {stage.name}", f"there is no {name} to go on from") for name in missing]
        complaints += _data_complaints(stage, source)
        there[stage.name] = before | set(left(stage)) | set(missing)  # what is missing is told once
    if base is not None and COMPONENT in base.weights:
        complaints += _size_complaints(recipe, base.configs[COMPONENT])
    for student in recipe.students:
        missing = [name for name in (*CLIPS, "transformer", "vae") if name not in there[student.stage]]
        complaints += [Complaint(f"student {student.name}", f"would have no {name}") for name in missing]
    if complaints:
        remedy = "give a teacher's folder, or let a stage of the recipe make what is missing before" if base is None else ""
        raise InputError(f"The recipe {recipe.name} cannot be followed with what there is.", complaints, remedy)


def check_profile(stage: QuantizeStage, profile: Profile, base: Student | None) -> None:
    """Refuse a profile that would leave the transformer as it is.

    Args:
        stage: that learns to be stored by it.
        profile: its.
        base: the teacher that the run was given; where the recipe makes one, this is seen when the stage begins.

    Raises:
        InputError: it quantizes nothing.
        ProfileError: no rule speaks of a weight.
    """
    weights = {} if base is None else base.weights.get(COMPONENT, {})
    matrices = [name for name, weight in weights.items() if name.endswith(".weight") and len(weight.shape) == 2]
    if matrices and all(profile.scheme(COMPONENT, name).kind == "float" for name in matrices):
        raise InputError(f"stage {stage.name}: {stage.profile} quantizes no weight of the transformer.")


def _needed(stage: AnyStage, recipe: Recipe, source: Source) -> Iterator[str]:
    """Components that a stage goes on from."""
    from_nothing = isinstance(recipe.data, ShapesData)
    if isinstance(stage, VaeStage | FlowStage) and not from_nothing:
        yield "vae" if isinstance(stage, VaeStage) else "transformer"
    if isinstance(stage, FlowStage) and not source.has_latents:
        yield "vae"
    if isinstance(stage, StudentStage):
        yield "transformer"
        if isinstance(stage, DecoderStage) or (recipe.judged and not source.has_embeddings):
            yield "vae"
    untold = stage.without_prompt > 0 if isinstance(stage, FlowStage) else isinstance(stage, StudentStage) and stage.guidance != 1
    if isinstance(stage, FlowStage | StudentStage) and (untold or not source.has_embeddings):
        yield from CLIPS


def _size_complaints(recipe: Recipe, config: Mapping[str, Any]) -> Iterator[Complaint]:
    """Of a transformer whose table of positions is too small for the recipe's pictures."""
    cell = LATENT_PIXELS * config["patch_size"]
    largest = cell * config["pos_embed_max_size"]
    if recipe.resolution > largest or recipe.resolution % cell:
        yield Complaint("resolution", "no such picture", f"multiples of {cell} up to {largest}", str(recipe.resolution))


def _data_complaints(stage: AnyStage, source: Source) -> Iterator[Complaint]:
    if isinstance(stage, VaeStage) and not source.has_pictures:
        yield Complaint("data", "has no pictures", f"pictures, for stage {stage.name}")
    if isinstance(stage, FlowStage) and not (source.has_pictures or source.has_latents):
        yield Complaint("data", "has neither pictures nor latents", f"either, for stage {stage.name}")
    if (
        isinstance(stage, MatchStage)
        and stage.adversarial.weight
        and not (stage.trajectories or stage.path or source.has_latents)
    ):
        expected = f"trajectories or a path in stage {stage.name}, or data with latents"
        yield Complaint("data", "has no latents that adversarial heads could take for real", expected)


def left(stage: AnyStage) -> tuple[str, ...]:
    """Components that a stage leaves."""
    if isinstance(stage, TextStage):
        return (*CLIPS, T5)
    return ("vae",) if isinstance(stage, VaeStage | DecoderStage) else ("transformer",)


def teacher_of(recipe: Recipe, name: str) -> str:
    """The stage that the teacher of a stage is of; none where the run was given it."""
    teachers = [one.name for one in recipe.way_to(name) if isinstance(one, FlowStage)]
    return teachers[-1] if teachers else ""


def stages_to_make(recipe: Recipe, asked: Sequence[AnyStage], is_made: Callable[[str], bool]) -> set[str]:
    """The stages that are to be made: not those whose networks nothing needs that is there, or is to be made itself.

    Args:
        recipe: of the run.
        asked: its stages, as far as they are asked for.
        is_made: whether a stage's result is there.
    """
    missing: set[str] = set()

    def need(name: str) -> None:
        """What a stage's student consists of, and what those stages need in turn that have to make it."""
        for stage in _providers(recipe, name):
            if stage.name in missing or is_made(stage.name):
                continue
            missing.add(stage.name)
            followed = (teacher_of(recipe, stage.name), stage.path) if isinstance(stage, StudentStage) else ()
            for one in filter(None, (stage.after, *branches_of(stage), *followed)):
                need(one)

    inner = {name for stage in asked for name in (stage.after, *branches_of(stage))}
    students = {name for student in recipe.students for name in (student.stage, *student.variants.values())}
    for stage in asked:
        if stage.name in students or stage.name not in inner:
            need(stage.name)
    return missing


def _providers(recipe: Recipe, name: str) -> list[AnyStage]:
    """The stages that have left the components of a stage's student, the last of each."""
    of_part = {part: stage for stage in recipe.way_to(name) for part in left(stage)}
    return list({stage.name: stage for stage in of_part.values()}.values())
