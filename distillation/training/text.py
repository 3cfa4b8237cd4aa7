"""A step of text encoders that learn to say what a caption says."""

from __future__ import annotations

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.stages import TextStage
from distillation.training.trainee import Trainee

__all__ = ["TextStep"]


class TextStep:
    """The student is :class:`distillation.world.text.Attributes`; a batch's ``cond`` holds captions and right answers."""

    def __init__(self, stage: TextStage, networks: Networks) -> None:
        self.trainees = {"student": Trainee.of_student(stage, networks.student)}

    def __call__(self, batch: Batch, counter: Counter, step: int) -> dict[str, float]:  # nothing is random
        """One step; returns what is to be recorded."""
        student = self.trainees["student"]
        loss, shares = student.module(*batch.cond)
        record: dict[str, float] = shares
        return record | {"loss": loss.item(), "gradient": student.learn(loss, step)}
