"""How good a student is: by the world's exact scorer where it draws that world, else by how near it comes to its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillation.data.settings import ShapesData
from distillation.networks.drawing import Sampler, decode
from distillation.run.signals import Interrupted
from distillation.world.scenes import sample
from distillation.world.score import score
from exporters.errors import InputError

if TYPE_CHECKING:
    from distillation.run.jobs.job import Site

__all__ = ["Judgement", "Once", "judge"]

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


@dataclass(frozen=True)
class Once:
    """A teacher whose latents are asked for several times: they are drawn once and held, in fp16."""

    sampler: Sampler
    drawn: dict[int, Tensor] = field(default_factory=dict)

    def latents(self, prompts: Sequence[Any], first: int = 0) -> Tensor:
        """As :meth:`Sampler.latents`; the prompts from a number on are always the same."""
        if first not in self.drawn or len(self.drawn[first]) < len(prompts):
            self.drawn[first] = self.sampler.latents(prompts, first).half()
        return self.drawn[first][: len(prompts)].float()


def judge(sampler: Sampler, site: Site, count: int, first: int = 0, teacher: Sampler | Once | None = None) -> Judgement:
    """Judge a network: in the world by scenes that it has not learned from, else by the source's own prompts.

    The run's processes share the prompts; all of them call this, and each is told the same.

    Args:
        sampler: how it draws.
        site: of its stage.
        count: of prompts.
        first: number of the first.
        teacher: what it is compared with where nothing tells right from wrong, with its guidance.

    Raises:
        Interrupted: the run was asked to stop.
        InputError: it draws what is no number.
    """
    if isinstance(site.recipe.data, ShapesData):
        return _scored(sampler, site, count, first)
    assert teacher is not None
    return _near(sampler, teacher, site, count, first)


def _scored(sampler: Sampler, site: Site, count: int, first: int) -> Judgement:
    """The share of pictures that are right."""
    scenes = sample(count, seed=JUDGED_SEED + first)
    vae = site.here(site.lineage.component("vae"))
    right = 0
    for part in _shared(site, count):
        asked = [scenes[number] for number in part]
        latents = _finite(sampler.latents([str(scene) for scene in asked], part.start))
        pictures = decode(vae, latents).permute(0, 2, 3, 1).cpu().numpy()
        right += sum(score(picture, scene)[0].right for picture, scene in zip(pictures, asked, strict=True))
    share = float(_over_all(site, right)) / count
    return Judgement(share, {"right": share})


def _near(sampler: Sampler, teacher: Sampler | Once, site: Site, count: int, first: int) -> Judgement:
    """How near latents come to the teacher's from the same noise, in decibels."""
    signal = error = 0.0
    for part in _shared(site, count):
        prompts = site.asked(range(first + part.start, first + part.stop))
        wanted, got = _finite(teacher.latents(prompts, part.start)), _finite(sampler.latents(prompts, part.start))
        signal, error = signal + float(wanted.square().sum()), error + float((wanted - got).square().sum())
    whole, off = _over_all(site, signal, error)
    decibels = 10 * float(torch.log10(whole / off.clamp(min=1e-30)))
    return Judgement(decibels, {"latent_db": decibels})


def _shared(site: Site, count: int) -> Iterator[range]:
    """This process's batches of numbers; all processes take as many turns, and stop after the same one.

    Raises:
        Interrupted: one of them was asked to stop.
    """
    processes = site.processes
    parts = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    for turn, part in enumerate(processes.turns(parts), 1):
        if processes.agreed(site.stop.asked):
            raise Interrupted
        if part is not None:
            yield part
        site.display.bar("judging", min(turn * BATCH * processes.count, count), count)


def _over_all(site: Site, *sums: float) -> Tensor:
    """Sums of all processes; in float32, for Apple's GPUs have no other: counts stay whole below 16 million."""
    return site.processes.summed(torch.tensor(sums, dtype=torch.float32, device=site.processes.device))


def _finite(latents: Tensor) -> Tensor:
    if not bool(latents.isfinite().all()):
        raise InputError(
            "A network draws NaN or infinity.", remedy="lower its stage's learning rate, and remove the stage's folder"
        )
    return latents
