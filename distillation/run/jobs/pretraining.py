"""Stages that make a teacher: text encoders, autoencoder, rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillation.batches import Batch, Networks
from distillation.data.batches import latent_batch, latents, picture_batch
from distillation.data.settings import ShapesData
from distillation.networks.roles import of_transformer, save_transformer
from distillation.run.cache import named
from distillation.run.jobs.job import Job, Site
from distillation.run.lineage import CLIPS, T5
from distillation.stages import AnyStage, FlowStage, TextStage, VaeStage
from distillation.world import networks as world
from distillation.world.scenes import parse
from distillation.world.text import targets
from exporters.errors import InputError
from exporters.student.student import TOKENIZERS

__all__ = ["autoencoder_job", "teacher_job", "text_job"]

SCALED_BY = 512
"""Pictures whose latents tell mean and standard deviation."""


def text_job(stage: TextStage, site: Site) -> Job:
    """Text encoders of the captioned world."""
    _of_the_world(stage, site)
    torch.manual_seed(site.recipe.seed)
    student = site.here(world.attributes())

    def batches(step: int) -> Batch:
        numbers = site.numbers(stage, step)
        captions = site.prompts(numbers)
        answers = {name: answer.to(site.like.device) for name, answer in targets([parse(text) for text in captions]).items()}
        return Batch(noise=torch.empty(len(numbers), 0), cond=(captions, answers), samples=site.place(stage, step).samples)

    def write(folder: Path, state: Mapping[str, Tensor]) -> None:  # transformers writes its own
        encoders = (*student.clips, student.t5)
        tokenizers = (*student.clip_tokenizers, student.t5_tokenizer)
        for name, encoder, tokenizer in zip((*CLIPS, T5), encoders, tokenizers, strict=True):
            encoder.save_pretrained(folder / name)
            tokenizer.backend_tokenizer.no_padding()  # as it came to be used here: nobody else's business
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.save_pretrained(folder / TOKENIZERS[name])

    return Job(Networks(student), batches, write)


def autoencoder_job(stage: VaeStage, site: Site) -> Job:
    """An autoencoder of the data's pictures."""
    torch.manual_seed(site.recipe.seed)
    vae = site.lineage.component("vae") if site.lineage.has("vae") else _from_nothing(world.autoencoder, stage, site)
    student = site.here(vae).train().requires_grad_(True)

    def batches(step: int) -> Batch:
        numbers = site.numbers(stage, step)
        return picture_batch(site.source, numbers, site.place(stage, step).samples).to(site.like)

    def write(folder: Path, state: Mapping[str, Tensor]) -> None:  # diffusers writes its own
        with torch.no_grad():
            latents = torch.cat(
                [student.encode(_pictures(site, range(i, i + 32))).latent_dist.mean for i in range(0, SCALED_BY, 32)]
            )
        # to mean 0 and standard deviation 1, as the transformer wants them
        student.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
        student.save_pretrained(folder / "vae")

    return Job(Networks(student), batches, write)


def teacher_job(stage: FlowStage, site: Site) -> Job:
    """A rectified flow on the latents of the data's pictures."""
    torch.manual_seed(site.recipe.seed)
    if site.lineage.has("transformer"):
        student = site.velocity(site.lineage, learns=True)
    else:
        student = site.computed(_from_nothing(lambda: world.transformer(stage.layers), stage, site), learns=True)
    width = student.transformer.config.joint_attention_dim
    encoders = site.encoders(width)
    uncond = site.untold(encoders, width)
    kept = _latents(stage, site)
    told = site.teller(encoders, 0 if kept is None else kept.count)

    def batches(step: int) -> Batch:
        place = site.place(stage, step)
        numbers = site.numbers(stage, step) if kept is None else place.integers("pictures", kept.count).tolist()
        x0 = latents(site.source, numbers) if kept is None else kept[numbers]
        cond = told(numbers)
        return latent_batch(x0.to(site.like), cond, uncond, place, without_prompt=stage.without_prompt, without=stage.without)

    def write(folder: Path, state: Mapping[str, Tensor]) -> None:
        save_transformer(student.transformer, folder, of_transformer(state))

    return Job(Networks(student), batches, write)


def _latents(stage: FlowStage, site: Site) -> Any:
    """Latents that are encoded once; none where the source holds latents itself."""
    if site.source.has_latents:
        return None
    vae = site.here(site.lineage.component("vae"))
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0

    @torch.no_grad()
    def compute(numbers: range) -> Tensor:
        latents: Tensor = (vae.encode(_pictures(site, numbers)).latent_dist.mean - shift) * scale
        return latents

    count = min(stage.pictures, len(site.source))
    return site.kept(named("latents", f"{site.origin} {site.source.fingerprint}"), count, compute)


def _pictures(site: Site, numbers: range) -> Tensor:
    x0 = picture_batch(site.source, site.within(numbers)).x0
    assert x0 is not None
    return x0.to(site.like)


def _of_the_world(stage: AnyStage, site: Site) -> None:
    if not isinstance(site.recipe.data, ShapesData):
        raise InputError(
            f"stage {stage.name} of kind {type(stage).__name__} makes networks of the captioned world from nothing, and the data "
            f"are of another kind.",
            remedy="give a teacher to go on from",
        )


def _from_nothing(build: Any, stage: AnyStage, site: Site) -> Any:
    _of_the_world(stage, site)
    return build()
