"""How good a student is: by the world's exact scorer where it draws that world, else by how near it comes to its teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from distillation.data.settings import ShapesData
from distillation.networks.drawing import Sampler, decode, teacher_levels
from distillation.world.scenes import sample
from distillation.world.score import score

if TYPE_CHECKING:
    from distillation.run.jobs.job import Site

__all__ = ["Judgement", "judge"]

BATCH = 50
JUDGED_SEED = 1 << 20
"""Of scenes that judge: numbers of scenes that are learned from give other seeds."""


@dataclass(frozen=True)
class Judgement:
    """What a student is worth.

    Attributes:
        figure: the larger the better: the share of right pictures, or decibels of latents against the teacher's.
        facts: what there is to tell.
    """

    figure: float
    facts: dict[str, float]


def judge(sampler: Sampler, site: Site, count: int, first: int = 0, teacher: Sampler | None = None) -> Judgement:
    """Judge a network by prompts that it has not learned from.

    Args:
        sampler: how it draws.
        site: of its stage.
        count: of prompts.
        first: number of the first.
        teacher: what it is compared with where nothing tells right from wrong.
    """
    if isinstance(site.recipe.data, ShapesData):
        return _scored(sampler, site, count, first)
    if teacher is None:
        from distillation.networks.roles import VelocityTransformer

        network = VelocityTransformer(site.here(site.teacher.component("transformer")), half=site.recipe.half)
        teacher = replace(sampler, network=network, levels=teacher_levels(28))
    return _near(sampler, teacher, site, count, first)


def _scored(sampler: Sampler, site: Site, count: int, first: int) -> Judgement:
    """The share of pictures that are right."""
    scenes = sample(count, seed=JUDGED_SEED + first)
    vae = site.here(site.lineage.component("vae"))
    right: list[bool] = []
    for start in range(0, count, BATCH):
        site.stop.check()
        asked = scenes[start : start + BATCH]
        pictures = decode(vae, sampler.latents([str(scene) for scene in asked], start)).permute(0, 2, 3, 1).cpu().numpy()
        right += [score(picture, scene)[0].right for picture, scene in zip(pictures, asked, strict=True)]
        site.display.bar("judging", min(start + BATCH, count), count)
    share = sum(right) / count
    return Judgement(share, {"right": share})


def _near(sampler: Sampler, teacher: Sampler, site: Site, count: int, first: int) -> Judgement:
    """How near latents come to the teacher's from the same noise, in decibels."""
    signal = error = 0.0
    for start in range(0, count, BATCH):
        site.stop.check()
        prompts = site.asked(range(first + start, first + min(start + BATCH, count)))
        wanted, got = teacher.latents(prompts, start), sampler.latents(prompts, start)
        signal, error = signal + float(wanted.square().sum()), error + float((wanted - got).square().sum())
    decibels = 10 * float(torch.log10(torch.tensor(signal / max(error, 1e-30))))
    return Judgement(decibels, {"latent_db": decibels})
