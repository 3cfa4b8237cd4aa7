"""A step of a small decoder: the pictures that the student's own autoencoder makes of what the student draws."""

from __future__ import annotations

import torch

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.stages import DecoderStage
from distillation.training.trainee import Trainee
from exporters.errors import InputError

__all__ = ["DecoderStep"]


class DecoderStep:
    """``mean |y - y*| + square mean (y - y*)^2 + encode mean (E(y*) - z)^2``, with ``y*`` the large decoder's picture of ``z``.

    The student is diffusers' ``AutoencoderTiny``, which takes latents as the transformer draws them; the teacher makes pictures
    of such latents. The encoder, which drawing does not need, learns the way back.
    """

    def __init__(self, stage: DecoderStage, networks: Networks) -> None:
        if networks.teacher is None:
            raise InputError(f"stage {stage.name} needs the large decoder as its teacher.")
        self.stage, self.teacher = stage, networks.teacher
        self.trainees = {"student": Trainee.of_student(stage, networks.student)}

    def __call__(self, batch: Batch, counter: Counter, step: int) -> dict[str, float]:  # nothing is random
        """One step; returns what is to be recorded."""
        latents, student = batch.clean(self.stage.name), self.trainees["student"]
        with torch.no_grad():
            wanted = self.teacher(latents, torch.zeros(len(latents)), None)
        tiny = student.module
        difference = tiny.decode(latents).sample - wanted  # type: ignore[operator]
        loss = difference.abs().mean() + self.stage.square * difference.square().mean()
        psnr = -10 * float(torch.log10(difference.detach().square().mean() / 4))  # pictures are in [-1, 1]
        if self.stage.encode:
            loss = loss + self.stage.encode * (tiny.encode(wanted).latents - latents).square().mean()  # type: ignore[operator]
        return {"loss": loss.item(), "psnr": psnr, "gradient": student.learn(loss, step)}
