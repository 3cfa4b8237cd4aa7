"""A step of an autoencoder: pictures to latents and back."""

from __future__ import annotations

import torch
from torch import Tensor

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.stages import VaeStage
from distillation.training.trainee import Trainee

__all__ = ["VaeStep"]


class VaeStep:
    """``mean |x - y| + square mean (x - y)^2 + divergence KL``; the student is a diffusers ``AutoencoderKL``."""

    def __init__(self, stage: VaeStage, networks: Networks) -> None:
        self.stage = stage
        self.trainees = {"student": Trainee.of_student(stage, networks.student)}

    def __call__(self, batch: Batch, counter: Counter, step: int) -> dict[str, float]:
        """One step; returns what is to be recorded."""
        x0 = batch.clean(self.stage.name)
        stage, vae = self.stage, self.trainees["student"].module
        pictures = x0 if step >= stage.crops * stage.steps else self._cropped(x0, counter)
        decoder_alone = step >= (1 - stage.decoder) * stage.steps
        with torch.set_grad_enabled(not decoder_alone):
            law = vae.encode(pictures).latent_dist  # type: ignore[operator]
        noise = counter.normal("latents", law.mean.shape[1:], pictures)
        # what the decoder will be given: latents that a network has drawn are not exactly a picture's
        spread = stage.latent_noise * law.mean.std() if decoder_alone else law.std
        latents = law.mean + spread * noise
        difference = vae.decode(latents).sample - pictures  # type: ignore[operator]
        loss = difference.abs().mean() + stage.square * difference.square().mean()
        record = {"psnr": -10 * float(torch.log10(difference.detach().square().mean() / 4))}
        if not decoder_alone:
            loss = loss + stage.divergence * law.kl().mean()
        return record | {"loss": loss.item(), "gradient": self.trainees["student"].learn(loss, step)}

    def _cropped(self, pictures: Tensor, counter: Counter) -> Tensor:
        size = self.stage.crop
        top = counter.integers("top", pictures.shape[2] - size + 1).tolist()
        left = counter.integers("left", pictures.shape[3] - size + 1).tolist()
        return torch.stack([p[:, y : y + size, x : x + size] for p, y, x in zip(pictures, top, left, strict=True)])
