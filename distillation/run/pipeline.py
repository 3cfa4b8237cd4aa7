"""A whole distillation: the stages of a recipe in order, each taken up where it was left.

::

    RUN/
        recipe.json                    the recipe as it was read, changes included
        stages/teacher-1a2b3c4d/       one folder a stage; the digest is of all that it depends on
            checkpoints/ metrics.jsonl while it learns
            result/                    what it left: components as diffusers stores them, stage.json
        cache/                         latents, trajectories: computed once
        tensorboard/
        student-4/ student-2/ ...      what the recipe hands out

A stage whose result is there is not made again; a recipe that was changed makes the stages anew that the change concerns.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from distillation.data.open import open_source
from distillation.loop import run_stage
from distillation.networks.drawing import Sampler, decode, teacher_levels
from distillation.networks.roles import VelocityTransformer
from distillation.recipe import Recipe
from distillation.run.jobs import Job, Site, job_of
from distillation.run.jobs.ahead import ahead
from distillation.run.judge import judge
from distillation.run.keeper import Keeper
from distillation.run.lineage import Lineage
from distillation.run.processes import Processes
from distillation.run.publish import publish
from distillation.run.records import Display, write_grid
from distillation.run.signals import Interrupted, Stop
from distillation.stages import AnyStage, FlowStage, MergeStage, StudentStage, TextStage, kind_of
from distillation.world.text import T5_TOKENS
from exporters.student.student import Student
from quantization.files import write_text
from quantization.folders import new_folder

__all__ = ["Distillation"]

SHOWN = 8
"""Prompts in a stage's grid."""


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

    Raises:
        InputError: the data cannot be read.
    """

    def __init__(
        self, recipe: Recipe, place: Path, base: Student | None, folder: Path, processes: Processes, display: Display, stop: Stop
    ) -> None:
        self.recipe, self.place, self.base, self.folder = recipe, place, base, folder
        self.processes, self.display, self.stop = processes, display, stop
        self.source = open_source(recipe.data, place)
        self.given = f"{'' if base is None else base.fingerprint()} {self.source.fingerprint}"

    def run(self, last: str = "") -> None:
        """All stages to the last, each published as the recipe says.

        Args:
            last: name of the stage after which to end; all where empty.

        Raises:
            Interrupted: the run was asked to stop; the same call goes on.
            InputError: something is not as it has to be: the teacher, the data, a loss.
        """
        if last:
            self.recipe.stage(last)
        if self.processes.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "recipe.json", json.dumps(msgspec.to_builtins(self.recipe), indent=2))
        for stage in self.recipe.stages:
            if not (self._result(stage.name) / "stage.json").is_file():
                self._make(stage)
            self._hand_out(stage)
            if stage.name == last:
                break

    def _identity(self, name: str) -> str:
        return self.recipe.identity(name, self.given)

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
        teachers = [one.name for one in self.recipe.way_to(stage.name) if isinstance(one, FlowStage)]
        teacher = teachers[-1] if teachers else ""
        branches = stage.branches if isinstance(stage, MergeStage) else ()
        return Site(
            recipe=self.recipe,
            lineage=self.lineage(stage.after),
            origin=self._identity(stage.after) if stage.after else self.given,
            teacher=self.lineage(teacher),
            teacher_identity=self._identity(teacher) if teacher else self.given,
            branches=tuple(self.lineage(branch) for branch in branches),
            source=self.source,
            processes=self.processes,
            cache=self.folder / "cache",
            display=self.display,
            stop=self.stop,
        )

    def _make(self, stage: AnyStage) -> None:
        """Make a stage, from its last checkpoint where there is one."""
        gc.collect()  # networks of the stage before hold one another
        site, folder = self._site(stage), self._stage_folder(stage.name)
        self.display.line(f"{stage.name}: {kind_of(stage)}, {stage.steps} steps of {stage.batch}")
        began = time.perf_counter()
        job = job_of(stage, site)
        if not isinstance(stage, MergeStage):
            self._learn(stage, job, folder)
        state = self.processes.whole(job.networks.student)
        if self.processes.first:
            with new_folder(folder / "result", replace=True) as draft:
                job.write(draft, state)
                facts = {"name": stage.name, "identity": self._identity(stage.name), "seconds": time.perf_counter() - began}
                write_text(draft / "stage.json", json.dumps(facts, indent=2))
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            self._report(stage, site, folder)
        self.processes.wait()

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
    def _report(self, stage: AnyStage, site: Site, folder: Path) -> None:
        """A stage's student is judged, and drawn beside its teacher."""
        if not isinstance(stage, StudentStage | FlowStage) or not self.recipe.judged or site.source.has_embeddings:
            return
        own = self.lineage(stage.name)
        samplers = [self._sampler(stage, own, site)]
        if isinstance(stage, StudentStage):
            samplers.append(self._sampler(None, site.teacher, site, stage.guidance))
        judged = judge(samplers[0], replace(site, lineage=own), self.recipe.judged)
        write_text(folder / "judged.json", json.dumps({"prompts": self.recipe.judged, **judged.facts}, indent=2))
        told = ", ".join(f"{name} {value:.3f}" for name, value in judged.facts.items())
        self.display.line(f"{stage.name}: {told} ({self.recipe.judged} prompts)")
        vae = site.here(own.component("vae"))
        prompts = site.prompts(range(SHOWN))
        teacher_vae = site.here(site.teacher.component("vae")) if len(samplers) > 1 else vae
        rows = [decode(one, sampler.latents(prompts)) for one, sampler in zip((vae, teacher_vae), samplers, strict=False)]
        write_grid(folder / "grid.png", rows)

    def _sampler(self, stage: AnyStage | None, lineage: Lineage, site: Site, guidance: float = 1.0) -> Sampler:
        network = VelocityTransformer(site.here(lineage.component("transformer")), half=self.recipe.half)
        encoders = site.here(lineage.text_encoders(network.transformer.config.joint_attention_dim))
        levels = stage.levels if isinstance(stage, StudentStage) else teacher_levels(28)
        return Sampler(network, levels, encoders, site.latent_shape(network.transformer.config), guidance)

    def _hand_out(self, stage: AnyStage) -> None:
        for student in self.recipe.students:
            if student.stage == stage.name and self.processes.first:
                target = self.folder / student.name
                if publish(self.recipe, student, self.lineage(stage.name), target, self._identity(stage.name)):
                    self.display.line(f"{target}")
        self.processes.wait()
