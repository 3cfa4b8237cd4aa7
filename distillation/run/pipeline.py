"""A whole distillation: the stages of a recipe in order, each taken up where it was left.

::

    RUN/
        recipe.json                    the recipe as it was read, changes included
        stages/teacher-1a2b3c4d/       one folder a stage; the digest is of all that it depends on
            checkpoints/ metrics.jsonl while it learns
            result/                    what it left: components as diffusers stores them, stage.json
        cache/                         latents, trajectories: computed once; may be removed
        tensorboard/
        student-4/ student-2/ ...      what the recipe hands out

A stage whose result is there is not made again; a recipe that was changed makes the stages anew that the change concerns, and
takes up the others, another recipe's too.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError

from distillation.data.open import open_source
from distillation.data.settings import ShapesData
from distillation.loop import run_stage
from distillation.networks.conditioning import Conditioning
from distillation.networks.drawing import Sampler, decode, teacher_levels
from distillation.recipe import Publication, Recipe, branches_of, path_of
from distillation.run.jobs import Job, Site, job_of
from distillation.run.jobs.ahead import ahead
from distillation.run.jobs.needs import check_needs, check_profile, stages_to_make, teacher_of
from distillation.run.judge import Once, judge
from distillation.run.keeper import Keeper
from distillation.run.lineage import Lineage
from distillation.run.outcome.publish import Sibling, publish, read_json
from distillation.run.outcome.taken_up import TAKEN_UP, TakenUp
from distillation.run.processes import Processes
from distillation.run.records import Display, write_grid
from distillation.run.signals import Interrupted, Stop
from distillation.stages import AnyStage, FlowStage, MergeStage, QuantizeStage, StudentStage, TextStage, kind_of
from distillation.world.text import T5_TOKENS
from exporters.errors import Complaint, InputError
from exporters.student.student import Student
from quantization.files import DRAFTS, write_text, writing_error
from quantization.folders import new_folder, remove_tree
from quantization.profile import load_profile, profile_toml

__all__ = ["Distillation"]

SHOWN = 8
"""Prompts in a stage's grid, at most."""


class Distillation:
    """A recipe, where it runs and what it begins from.

    Args:
        recipe: to follow.
        place: folder that the recipe's paths begin at.
        base: the teacher that the run was given; none where the recipe makes it.
        folder: of the run.
        processes: that share its work.
        display: where progress is told.
        stop: whether it is asked to stop.
        taken_up: a student that holds what stages have left.

    Raises:
        InputError: the data or a profile cannot be read, or a stage could not begin with what there is.
    """

    def __init__(
        self,
        recipe: Recipe,
        place: Path,
        base: Student | None,
        folder: Path,
        processes: Processes,
        display: Display,
        stop: Stop,
        taken_up: TakenUp | None = None,
    ) -> None:
        self.recipe, self.place, self.base, self.folder = recipe, place, base, folder
        self.processes, self.display, self.stop, self.taken_up = processes, display, stop, taken_up
        self.source = open_source(recipe.data, place)
        check_needs(recipe, base, self.source, processes)
        quantizing = [stage for stage in recipe.stages if isinstance(stage, QuantizeStage)]
        self.profiles = {stage.name: load_profile(place / stage.profile) for stage in quantizing}
        for stage in quantizing:
            check_profile(stage, self.profiles[stage.name], base)
        self.given = f"{'' if base is None else base.fingerprint()} {self.source.fingerprint}"

    def run(self, last: str = "") -> None:
        """All stages to the last, each published as the recipe says.

        Args:
            last: name of the stage after which to end; all where empty.

        Raises:
            Interrupted: the run was asked to stop; the same call goes on.
            InputError: something is not as it has to be: the teacher, the data, a loss.
        """
        asked = self.recipe.stages
        if last:
            asked = asked[: asked.index(self.recipe.stage(last)) + 1]
        self._by_the_first(self._tidy)
        if self.taken_up is not None:
            self._by_the_first(partial(self._take_up, self.taken_up))
        missing = stages_to_make(self.recipe, asked, self._is_made)
        for stage in asked:
            if self.processes.agreed(self.stop.asked):
                raise Interrupted
            if stage.name in missing:
                self._make(stage)
                self._make_room()
            if self._is_made(stage.name):
                self._report(stage)
                self._by_the_first(partial(self._hand_out, stage))

    def _make_room(self) -> None:
        """Networks that name one another go before others take their place."""
        gc.collect()
        if self.processes.device != "cpu":
            torch.cuda.empty_cache()

    def _by_the_first(self, work: Callable[[], None]) -> None:
        """Work of the first process alone, for which the others wait.

        Raises:
            Interrupted: it was asked to stop meanwhile.
        """
        interrupted = False
        if self.processes.first:
            try:
                work()
            except Interrupted:
                interrupted = True
        if self.processes.agreed(interrupted):
            raise Interrupted

    def _tidy(self) -> None:
        """Say what the run is of, and remove what an earlier one was writing when it was killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for draft in [place for place in self.folder.rglob(".*.partial") if DRAFTS.fullmatch(place.name)]:
            if draft.is_dir() and not draft.is_symlink():
                remove_tree(draft)
            else:
                draft.unlink(missing_ok=True)
        text, file = json.dumps(msgspec.to_builtins(self.recipe), indent=2), self.folder / "recipe.json"
        if not file.is_file() or file.read_text("utf-8", errors="replace") != text:
            write_text(file, text)

    def _take_up(self, student: TakenUp) -> None:
        """Stages whose results a student holds are not made again.

        Raises:
            InputError: it holds none of the recipe's.
        """
        held = {stage.name: student.variant_of(stage, self._identity(stage.name), self.recipe) for stage in self.recipe.stages}
        if not any(variant is not None for variant in held.values()):
            ways = ", ".join(sorted({identity for those in student.components.values() for identity in those.values()}))
            complaint = Complaint(str(student.folder), "holds no stage of the recipe as it is", got=f"stages {ways}")
            raise InputError("No stage can be taken up.", [complaint], "a changed recipe, or other data, makes its stages itself")
        for stage in self.recipe.stages:
            variant = held[stage.name]
            if variant is None or self._is_made(stage.name):
                continue
            with _refused(self._result(stage.name)), new_folder(self._result(stage.name), replace=True) as draft:
                student.write(stage, self._identity(stage.name), variant, draft)
            self.display.line(f"{stage.name}: taken up from {student.folder}")

    def _hand_out(self, stage: AnyStage) -> None:
        """What follows a stage's result: also where the run was stopped right after it."""
        checkpoints = self._stage_folder(stage.name) / "checkpoints"
        if checkpoints.is_dir():
            remove_tree(checkpoints)
        for student in self.recipe.students:
            if stage.name in (student.stage, *student.variants.values()) and self._is_made(student.stage):
                self._publish(student)

    def _publish(self, student: Publication) -> None:
        """Hand a student out, with those of its variants that are made."""
        done = [(name, stage) for name, stage in student.variants.items() if self._is_made(stage)]
        siblings = [Sibling(name, stage, self.lineage(stage)) for name, stage in done]
        target, identity = self.folder / student.name, self._identity(student.stage)
        if publish(self.recipe, student, self.lineage(student.stage), target, identity, siblings):
            self.display.line(f"{target}")

    def _is_made(self, name: str) -> bool:
        return (self._result(name) / "stage.json").is_file()

    def _identity(self, name: str) -> str:
        identity = self.recipe.identity(name, self.given)
        if profiles := [self.profiles[one] for one in self.recipe.behind(name) if one in self.profiles]:
            told = [identity, *map(profile_toml, profiles)]  # the recipe has their names alone
            return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
        return identity

    def _stage_folder(self, name: str) -> Path:
        return self.folder / "stages" / f"{name}-{self._identity(name)[:8]}"

    def _result(self, name: str) -> Path:
        return self._stage_folder(name) / "result"

    def lineage(self, name: str) -> Lineage:
        """What a stage and those before it have left; of no stage: what the run was given."""
        way = self.recipe.way_to(name) if name else ()
        learned = any(isinstance(stage, TextStage) for stage in way)
        length = T5_TOKENS if learned or self.base is None else self.base.defaults.max_sequence_length
        return Lineage(self.base, tuple(self._result(stage.name) for stage in reversed(way)), length)

    def _site(self, stage: AnyStage) -> Site:
        teacher = teacher_of(self.recipe, stage.name)
        path = path_of(self.recipe, stage)
        return Site(
            recipe=self.recipe,
            lineage=self.lineage(stage.after),
            origin=self._identity(stage.after) if stage.after else self.given,
            teacher=self.lineage(teacher),
            teacher_identity=self._identity(teacher) if teacher else self.given,
            branches=tuple(self.lineage(branch) for branch in branches_of(stage)),
            path=None if path is None else self.lineage(path.name),
            path_identity="" if path is None else self._identity(path.name),
            source=self.source,
            processes=self.processes,
            cache=self.folder / "cache",
            profile=self.profiles.get(stage.name),
            display=self.display,
            stop=self.stop,
        )

    def _make(self, stage: AnyStage) -> None:
        """Make a stage, from its last checkpoint where there is one."""
        site, folder = self._site(stage), self._stage_folder(stage.name)
        self.display.line(f"{stage.name}: {kind_of(stage)}, {stage.steps} steps of {stage.batch}")
        began = time.perf_counter()
        if site.like.is_cuda:
            torch.cuda.reset_peak_memory_stats(site.like.device)
        job = job_of(stage, site)
        if not isinstance(stage, MergeStage):
            self._learn(stage, job, folder)
        state = self.processes.whole(job.networks.student)
        facts: dict[str, object] = {"name": stage.name, "identity": self._identity(stage.name)}
        facts["seconds"] = time.perf_counter() - began
        if site.like.is_cuda:
            held = torch.cuda.max_memory_allocated(site.like.device)
            facts["device_bytes"] = held
            self.display.line(f"{stage.name}: {held / 1e9:.1f} GB of tensors on the device at most while it learned")

        def write() -> None:
            with _refused(folder / "result"), new_folder(folder / "result", replace=True) as draft:
                job.write(draft, state)
                write_text(draft / "stage.json", json.dumps(facts, indent=2))

        self._by_the_first(write)

    def _learn(self, stage: AnyStage, job: Job, folder: Path) -> None:
        """Make a stage's steps.

        Raises:
            Interrupted: the run was asked to stop; what is done is kept.
        """
        if self.processes.first:
            folder.mkdir(parents=True, exist_ok=True)
        self.processes.wait()
        on_gpu = not self.processes.device.startswith("cpu")
        batches = ahead(job.batches, stage.steps) if on_gpu else job.batches  # on a CPU both would wait for the same cores
        place = self.recipe.checkpoint_seconds, self._identity(stage.name), self.folder / "tensorboard" / folder.name
        with Keeper(stage, folder, *place, self.processes, self.display, self.stop) as keeper:
            outcome = run_stage(stage, job.networks, batches, self.recipe.seed, restore=keeper.restore, on_step=keeper.on_step)
        if not outcome.finished:
            self.display.line(f"{stage.name}: stopped after step {outcome.steps} of {stage.steps}, which is kept")
            raise Interrupted

    @torch.no_grad()
    def _report(self, stage: AnyStage) -> None:
        """A stage's student is judged by all processes together, and drawn beside its teacher, unless it has been."""
        if not self._is_unjudged(stage):
            return
        site = replace(self._site(stage), lineage=self.lineage(stage.name))
        levels = stage.levels if isinstance(stage, StudentStage) else teacher_levels()
        student = self._sampler(site.lineage, levels, site)
        teacher = None
        if isinstance(stage, StudentStage):
            teacher = Once(self._sampler(site.teacher, teacher_levels(), site, student.encode, stage.guidance))
        facts = judge(student, site, self.recipe.judged, teacher=teacher).facts
        if isinstance(stage, StudentStage) and stage.without_t5:
            dropped = judge(replace(student, without_t5=True), site, self.recipe.judged, teacher=teacher).facts
            facts |= {f"{name}_without_t5": value for name, value in dropped.items()}

        def write() -> None:
            told = ", ".join(f"{name} {value:.3f}" for name, value in facts.items())
            self.display.line(f"{stage.name}: {told} ({self.recipe.judged} prompts)")
            prompts = site.prompts(range(min(SHOWN, self.recipe.judged)))
            rows = [decode(site.here(site.lineage.component("vae")), student.latents(prompts))]
            if teacher is not None:
                rows.append(decode(site.here(site.teacher.component("vae")), teacher.latents(prompts)))
            folder = self._stage_folder(stage.name)
            write_grid(folder / "grid.png", rows)
            write_text(folder / "judged.json", json.dumps({"prompts": self.recipe.judged, **facts}, indent=2))

        self._by_the_first(write)

    def _is_unjudged(self, stage: AnyStage) -> bool:
        """Whether there is something to judge a stage's student by, and it has not been; as the first process finds it."""
        teaches = isinstance(stage, FlowStage) and isinstance(self.recipe.data, ShapesData)  # else nothing tells right from wrong
        if not (isinstance(stage, StudentStage) or teaches) or not self.recipe.judged or self.source.has_embeddings:
            return False
        folder = self._stage_folder(stage.name)
        elsewhere = TAKEN_UP in read_json(folder / "result" / "stage.json")  # judged where it was made
        done = elsewhere or read_json(folder / "judged.json").get("prompts") == self.recipe.judged
        return bool(self.processes.agreed(self.processes.first and not done))

    def _sampler(
        self,
        lineage: Lineage,
        levels: tuple[float, ...],
        site: Site,
        encode: Callable[..., Conditioning] | None = None,
        guidance: float = 1.0,
    ) -> Sampler:
        network = site.drawing(lineage)
        config = network.transformer.config
        encode = encode or site.text_encoders(config.joint_attention_dim)
        return Sampler(network, levels, encode, site.latent_shape(config), guidance)


@contextlib.contextmanager
def _refused(target: Path) -> Iterator[None]:
    """What the libraries that write networks say of a full disk, as a complaint about what was to be written.

    Raises:
        WritingError: in place of safetensors' own.
    """
    try:
        yield
    except SafetensorError as error:
        raise writing_error(target, OSError(str(error))) from error
