"""A step of quantization in the loop: the quantized student comes back to where the unquantized one goes.

Each sample starts at a state that the quantized student itself has reached, and is asked for the velocity that leads from there
to the *unquantized* student's next state: what earlier steps have lost is asked of the later ones, and the last state, which is
what is seen, is asked for as it should be.
"""

from __future__ import annotations

import torch

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.flow import euler
from distillation.objectives import trajectory
from distillation.stages import QuantizeStage
from distillation.training.trainee import Trainee
from distillation.training.trajectory import Segments
from exporters.errors import InputError

__all__ = ["QuantizeStep"]


class QuantizeStep:
    """The student computes with quantized weights (:func:`distillation.networks.quantized.quantize`); the teacher without."""

    def __init__(self, stage: QuantizeStage, networks: Networks) -> None:
        if networks.teacher is None:
            raise InputError(f"stage {stage.name} needs the unquantized student as its teacher.")
        self.teacher, self.segments = networks.teacher, Segments(stage)
        self.trainees = {"student": Trainee.of_student(stage, networks.student)}

    def __call__(self, batch: Batch, counter: Counter, step: int) -> dict[str, float]:
        """One step; returns what is to be recorded."""
        student, levels = self.trainees["student"], self.segments.levels
        with torch.no_grad():
            wanted = torch.stack(euler(self.teacher, batch.noise, levels, batch.cond), 1)
            own = torch.stack(euler(student.module, batch.noise, levels, batch.cond), 1)
        index, before, after = self.segments.draw(counter, "segments", batch.noise)
        rows = torch.arange(len(index), device=index.device)
        loss = trajectory.loss(student.module, own[rows, index], wanted[rows, index + 1], before, after, batch.cond)
        last, error = wanted[:, -1].square().mean(), (own[:, -1] - wanted[:, -1]).square().mean()
        norm = student.learn(loss, step)
        return {"loss": loss.item(), "latent_db": float(10 * torch.log10(last / error)), "gradient": norm}
