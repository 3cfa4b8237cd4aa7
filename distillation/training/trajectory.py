"""A step of trajectory guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.levels import checked, segments, substeps
from distillation.objectives import trajectory
from distillation.stages import MatchStage, StudentStage, TrajectoryStage
from distillation.training.trainee import Trainee
from exporters.errors import InputError

__all__ = ["Segments", "TrajectoryStep", "ends", "teacher_states"]


class Segments:
    """A student's steps, and which of them each sample trains.

    Args:
        stage: says the levels and the steps that are trained.
    """

    def __init__(self, stage: StudentStage) -> None:
        self.levels = checked(stage.levels, f"stage {stage.name}")
        steps = len(self.levels) - 1
        if wrong := [index for index in stage.only if index >= steps]:
            raise InputError(f"stage {stage.name}: only names steps {wrong} of a student of {steps} steps, counted from 0.")
        self.trained = stage.only or tuple(range(steps))

    def draw(self, counter: Counter, purpose: str, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A trained step for each sample: its number, the level before and the level after, each ``[batch]``."""
        index = torch.tensor(self.trained)[counter.integers(purpose, len(self.trained))]
        before, after = torch.tensor(segments(self.levels), dtype=torch.float64)[index].unbind(1)
        return index.to(like.device), before.to(like), after.to(like)


def ends(states: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The states before and after a step that each sample has chosen, of ``[batch, steps + 1, ...]``."""
    rows = torch.arange(len(index), device=index.device)
    return states[rows, index], states[rows, index + 1]


def teacher_states(stage: TrajectoryStage | MatchStage, networks: Networks, batch: Batch) -> Tensor:
    """The teacher's states at the student's levels: the batch's, or integrated here."""
    if batch.states is not None:
        return batch.states
    if networks.teacher is None:
        raise InputError(f"stage {stage.name} follows a teacher: give one, or its states with the batches.")
    teacher = trajectory.teacher_velocity(networks.teacher, batch.uncond, stage.guidance)
    parts = substeps(checked(stage.levels, f"stage {stage.name}"), stage.teacher_steps, stage.shift)
    return trajectory.states(teacher, batch.noise, parts, batch.told_teacher)


class TrajectoryStep:
    """One segment a sample, chosen at random."""

    def __init__(self, stage: TrajectoryStage, networks: Networks) -> None:
        self.stage, self.networks, self.segments = stage, networks, Segments(stage)
        self.trainees = {"student": Trainee.of_student(stage, networks.student)}

    def __call__(self, batch: Batch, counter: Counter, step: int) -> dict[str, float]:
        """One step; returns what is to be recorded."""
        states = teacher_states(self.stage, self.networks, batch)
        index, before, after = self.segments.draw(counter, "segments", batch.noise)
        student = self.trainees["student"]
        loss = trajectory.loss(student.module, *ends(states, index), before, after, batch.cond)
        norm = student.learn(loss, step)
        return {"loss": loss.item(), "gradient": norm}
