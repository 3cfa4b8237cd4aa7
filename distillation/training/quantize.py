"""A step of quantization in the loop: the quantized student comes back to where the unquantized one goes.

The quantized student draws, and at each state that it reaches itself is asked for the velocity that leads from there to the
*unquantized* student's next state: what earlier steps have lost is asked of the later ones, and the last state, which is what is
seen, is asked for as it should be. No gradient goes from one step to those before.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.flow import euler
from distillation.levels import segments
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
        self.teacher, steps = networks.teacher, Segments(stage)
        self.levels, self.trained = steps.levels, steps.trained
        self.trainees = {"student": Trainee.of_student(stage, networks.student)}

    def __call__(self, batch: Batch, counter: Counter, step: int) -> dict[str, float]:
        """One step; returns what is to be recorded."""
        with torch.no_grad():
            wanted = euler(self.teacher, batch.noise, self.levels, batch.cond)
        record = {"loss": 0.0}

        def losses() -> Iterator[Tensor]:
            """Of each trained step, on the way through all of them."""
            x = batch.noise
            for index, (before, after) in enumerate(segments(self.levels)):
                trained = index in self.trained
                with torch.set_grad_enabled(trained):
                    v = self.trainees["student"].module(x, torch.full((len(x),), before).to(x), batch.cond)
                if trained:
                    loss = (v - (wanted[index + 1] - x) / (after - before)).square().mean() / len(self.trained)
                    record["loss"] += loss.item()
                    yield loss
                x = x + (after - before) * v.detach()
            error = (x - wanted[-1]).square().mean()
            record["latent_db"] = float(10 * torch.log10(wanted[-1].square().mean() / error))

        record["gradient"] = self.trainees["student"].learn(losses(), step)
        return record
