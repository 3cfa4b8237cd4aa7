"""A step of a teacher: rectified flow on clean data."""

from __future__ import annotations

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.flow import diffuse
from distillation.stages import FlowStage
from distillation.training.trainee import Trainee

__all__ = ["FlowStep"]


class FlowStep:
    """``mean || v(x_t, t) - (noise - x0) ||^2`` with ``logit t`` normally distributed."""

    def __init__(self, stage: FlowStage, networks: Networks) -> None:
        self.stage = stage
        self.trainees = {"student": Trainee.of_student(stage, networks.student)}

    def __call__(self, batch: Batch, counter: Counter, step: int) -> dict[str, float]:
        """One step; returns what is to be recorded."""
        x0 = batch.clean(self.stage.name)
        logits = self.stage.location + self.stage.scale * counter.normal("levels", (), batch.noise)
        t = logits.sigmoid()
        student = self.trainees["student"]
        v = student.module(diffuse(x0, t, batch.noise), t, batch.cond)
        loss = (v - (batch.noise - x0)).square().mean()
        norm = student.learn(loss, step)
        return {"loss": loss.item(), "gradient": norm}
