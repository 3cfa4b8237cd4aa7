"""Stages that make a student of a teacher, and what a device needs of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.data.batches import latents
from distillation.data.settings import ShapesData
from distillation.flow import Velocity, euler
from distillation.levels import checked, substeps, through
from distillation.networks.adapters import adapted, merged_weight, write_lora
from distillation.networks.conditioning import Conditioning
from distillation.networks.drawing import Sampler, decode, teacher_levels
from distillation.networks.quantized import input_grams, quantize, stored_weights
from distillation.networks.roles import VelocityTransformer, of_transformer, save_transformer
from distillation.objectives import trajectory
from distillation.objectives.branches import merge
from distillation.objectives.heads import Heads
from distillation.recipe import path_of
from distillation.run.cache import Kept
from distillation.run.jobs.job import Job, Site
from distillation.run.judge import Once, judge
from distillation.run.lineage import ADAPTER, INPUTS, LORA, PROFILE, undamaged
from distillation.stages import DecoderStage, MatchStage, MergeStage, QuantizeStage, StudentStage, TrajectoryStage
from distillation.write import write_component
from exporters.errors import InputError
from quantization.files import write_bytes, write_text
from quantization.profile import profile_toml

__all__ = ["decoder_job", "merge_job", "quantize_job", "student_job"]


def student_job(stage: TrajectoryStage | MatchStage, site: Site) -> Job:
    """A student that follows a teacher, or is matched to it by a fake model."""
    if site.recipe.lora is not None:
        return _adapted_job(stage, site)
    teacher = site.velocity(site.teacher)
    student = site.velocity(site.lineage, learns=True)
    networks = Networks(student, teacher)
    if isinstance(stage, MatchStage):
        fake = site.velocity(site.teacher, learns=True)  # a velocity that knows the data: nearer to any law than the student is
        networks.fake = fake
        _add_heads(stage, site, networks, fake, fake.features)
    config = teacher.transformer.config

    def write(folder: Path, state: Mapping[str, Tensor]) -> None:
        save_transformer(student.transformer, folder, of_transformer(state))

    return Job(networks, _batches(stage, site, teacher, config), write)


def _adapted_job(stage: TrajectoryStage | MatchStage, site: Site) -> Job:
    """The same on one transformer with two adapters; what is left is the adapter, and the transformer with it."""
    assert site.recipe.lora is not None
    base = site.transformer(site.teacher)
    if site.recipe.checkpointing:
        base.enable_gradient_checkpointing()
    roles = adapted(base, site.recipe.lora, site.recipe.seed, half=site.recipe.half)
    if (file := site.lineage.beside_transformer(ADAPTER)) is not None:
        with undamaged(file):
            roles.student.load_state_dict(load_file(file))
    networks = Networks(roles.student, roles.teacher, roles.fake)
    if isinstance(stage, MatchStage):
        _add_heads(stage, site, networks, VelocityTransformer(base), roles.features)

    def write(folder: Path, state: Mapping[str, Tensor]) -> None:
        config, tensors = site.teacher.stored("transformer")  # as they were: the base may compute in fewer bits
        shapes = {name: shape for name, (shape, _) in tensors.items()}

        def chunks(name: str) -> Iterator[np.ndarray]:
            shape, read = tensors[name]
            weight = torch.from_numpy(np.concatenate([np.float32(part) for part in read()]).reshape(shape))
            yield merged_weight(roles.student, name, weight).numpy().reshape(-1)

        of_each = {name: partial(chunks, name) for name in tensors}
        write_component(folder / "transformer", config, shapes, of_each, "fp32")
        write_bytes(folder / ADAPTER, save(dict(state)))
        write_lora(folder / LORA, roles.student)

    return Job(networks, _batches(stage, site, roles.teacher, base.config), write)


def _add_heads(
    stage: MatchStage, site: Site, networks: Networks, fake: VelocityTransformer, features: Callable[..., Any]
) -> None:
    """Adversarial heads on every second block of the fake model, or its only one, where the stage has them."""
    if stage.adversarial.weight:
        blocks = tuple(range(len(fake.transformer.transformer_blocks)))[1::2] or (0,)
        torch.manual_seed(site.recipe.seed)
        networks.heads = site.here(Heads([fake.transformer.inner_dim] * len(blocks)))
        networks.features = partial(features, blocks=blocks)


def merge_job(stage: MergeStage, site: Site) -> Job:
    """Two branches become one network, at the ratio that does best on prompts of its own."""
    low, high, student = (  # in fp32: it is their weights that are wanted
        VelocityTransformer(site.here(each.component("transformer")), half=site.recipe.half)
        for each in (*site.branches, site.lineage)
    )
    several, shape = len(stage.ratios) > 1, site.latent_shape(student.transformer.config)
    sampler = Sampler(student, stage.levels, _encode(site, student), shape, seed=site.recipe.seed + 1)
    teacher = None
    if several and not isinstance(site.recipe.data, ShapesData):  # nothing but the teacher tells right from wrong
        network = site.velocity(site.teacher, whole=True)
        teacher = Once(replace(sampler, network=network, levels=teacher_levels(), guidance=stage.guidance))

    scores: dict[float, float] = {}
    for ratio in stage.ratios:
        student.load_state_dict(merge(low.state_dict(), high.state_dict(), ratio))
        scores[ratio] = judge(sampler, site, stage.prompts, first=1 << 24, teacher=teacher).figure if several else 0.0
        site.display.line(f"{stage.name}: ratio {ratio:g}: {scores[ratio]:.4f}")
    best = max(scores, key=scores.__getitem__)
    student.load_state_dict(merge(low.state_dict(), high.state_dict(), best))

    def write(folder: Path, state: Mapping[str, Tensor]) -> None:  # no stage of this kind shares its network out
        save_transformer(student.transformer, folder)
        write_text(
            folder / "ratios.json", json.dumps({"taken": best, "figures": {str(r): s for r, s in scores.items()}}, indent=2)
        )

    return Job(Networks(student), lambda step: Batch(torch.empty(1, 0)), write)


def quantize_job(stage: QuantizeStage, site: Site) -> Job:
    """A student that comes back to itself through the weights that a profile stores."""
    assert site.profile is not None
    profile = site.profile
    teacher, student = site.velocity(site.lineage, whole=True), site.velocity(site.lineage, learns=True, whole=True)
    batches = _batches(stage, site, teacher, teacher.transformer.config)
    levels = checked(stage.levels, f"stage {stage.name}")
    with torch.no_grad(), input_grams(teacher.transformer) as grams:
        for batch in map(batches, range(stage.calibration)):
            euler(teacher, batch.noise, levels, batch.cond)
    grams = {name: site.processes.summed(gram) for name, gram in grams.items()}
    if not quantize(student.transformer, profile, round_inputs=stage.round_inputs, grams=grams):
        raise InputError(f"stage {stage.name}: {stage.profile} quantizes no weight of the transformer.")

    def write(folder: Path, state: Mapping[str, Tensor]) -> None:  # no stage of this kind shares its network out
        save_transformer(teacher.transformer, folder, stored_weights(student.transformer))
        write_text(
            folder / PROFILE, profile_toml(profile, f"What {site.recipe.name}'s stage {stage.name} has learned to be stored by.")
        )
        if stage.round_inputs:
            write_text(
                folder / INPUTS, f"{site.recipe.name}'s stage {stage.name} has learned with inputs as onnxruntime has them.\n"
            )

    return Job(Networks(student, teacher), batches, write)


def decoder_job(stage: DecoderStage, site: Site) -> Job:
    """A small decoder of the latents that the student draws."""
    from diffusers import AutoencoderTiny

    velocity = site.drawing(site.lineage)
    vae = site.here(site.lineage.component("vae"))
    levels = checked(stage.levels, f"stage {stage.name}")
    torch.manual_seed(site.recipe.seed)
    tiny: Any = AutoencoderTiny(
        latent_channels=velocity.transformer.config.in_channels,
        encoder_block_out_channels=stage.channels,
        decoder_block_out_channels=stage.channels,
        num_encoder_blocks=tuple(reversed(stage.blocks)),
        num_decoder_blocks=stage.blocks,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    student = site.here(tiny.train())
    sampler = Sampler(
        velocity, levels, _encode(site, velocity), site.latent_shape(velocity.transformer.config), seed=site.recipe.seed
    )
    name = site.named("drawn", [site.origin, site.recipe.seed, levels], sampler.shape)

    def draw(numbers: range) -> Tensor:
        return sampler.latents(site.asked(numbers), numbers.start)

    drawn = site.kept(name, stage.latents, draw, math.prod(sampler.shape))

    def batches(step: int) -> Batch:
        place = site.place(stage, step)
        x0 = drawn[place.integers("latents", drawn.count).tolist()].to(site.like)
        return Batch(noise=torch.empty(len(x0), 0), x0=x0, samples=place.samples)

    def picture(latents: Tensor, t: Tensor, cond: Any) -> Tensor:  # as every network is called
        return decode(vae, latents) * 2 - 1

    return Job(Networks(student, picture), batches, lambda folder, _: student.save_pretrained(folder / "vae"))


def _encode(site: Site, velocity: VelocityTransformer) -> Callable[[Sequence[Any]], Conditioning]:
    """What a network is told of what :meth:`Site.asked` gives: prompts, or numbers of samples whose embeddings are held."""
    encoders = site.encoders(velocity.transformer.config.joint_attention_dim)
    return encoders if encoders is not None else lambda numbers: site.told(None, numbers)


def _batches(stage: StudentStage, site: Site, teacher: Velocity, config: Any) -> Callable[[int], Batch]:
    """Batches of prompts: the student is not always told T5's part, the teacher is."""
    shape, width = site.latent_shape(config), config.joint_attention_dim
    encoders = site.encoders(width)
    uncond = site.untold(encoders, width) if stage.guidance != 1 else None
    if uncond is None and stage.guidance != 1:
        raise InputError(f"stage {stage.name}: guidance needs the empty prompt, and there are no text encoders.")
    levels = checked(stage.levels, f"stage {stage.name}")
    nodes = checked(stage.nodes, f"stage {stage.name}: nodes") if stage.nodes else levels
    own = [nodes.index(level) for level in levels]
    told = site.teller(encoders, stage.trajectories)
    path = _path(stage, site, teacher, uncond, nodes)
    kept = _trajectories(stage, site, path, told, shape) if stage.trajectories else None

    def batches(step: int) -> Batch:
        place = site.place(stage, step)
        states = None
        if kept is None:
            numbers, noise = site.numbers(stage, step), place.normal("start", shape, site.like)
            if stage.path:
                states = path.states(noise, told(numbers))[:, own]
        else:
            numbers = place.integers("trajectories", kept.count).tolist()
            noise = _start(site, numbers, shape)
            states = torch.cat([noise[:, None], kept[numbers].to(site.like)], 1)[:, own]
        cond = told(numbers)
        dropped = place.uniform("t5", site.like) < stage.without_t5
        return Batch(
            noise=noise,
            cond=cond.without_t5(dropped) if stage.without_t5 else cond,
            teacher_cond=cond,
            uncond=None if uncond is None else uncond.repeated(len(numbers)),
            x0=_real(stage, site, numbers) if states is None else states[:, -1],
            states=states,
            samples=place.samples,
        )

    return batches


def _real(stage: StudentStage, site: Site, numbers: Sequence[int]) -> Tensor | None:
    """What heads take for real where no path ends in the teacher's own pictures (LADD, 2403.12015): the data's latents."""
    with_heads = isinstance(stage, MatchStage) and stage.adversarial.weight > 0
    return latents(site.source, numbers).to(site.like) if with_heads and site.source.has_latents else None


def _start(site: Site, numbers: Any, shape: tuple[int, ...]) -> Tensor:
    """The noise that a kept trajectory starts at."""
    return Counter(site.recipe.seed, "trajectories", 0, list(numbers)).normal("start", shape, site.like)


@dataclass(frozen=True)
class _Path:
    """What a student follows.

    Attributes:
        network: that draws it.
        uncond: the empty prompt; none where there is no guidance.
        guidance: the network's scale.
        substeps: of each segment.
        whose: a digest of the network.
    """

    network: Velocity
    uncond: Conditioning | None
    guidance: float
    substeps: Sequence[Sequence[float]]
    whose: str

    def states(self, noise: Tensor, cond: Conditioning) -> Tensor:
        """The states at the ends of the segments, ``[batch, segments + 1, ...]``."""
        uncond = None if self.uncond is None else self.uncond.repeated(len(noise))
        return trajectory.states(trajectory.teacher_velocity(self.network, uncond, self.guidance), noise, self.substeps, cond)


def _path(stage: StudentStage, site: Site, teacher: Velocity, uncond: Conditioning | None, nodes: tuple[float, ...]) -> _Path:
    """The teacher's with its guidance, or the path of the student that the stage names, without any."""
    draws = path_of(site.recipe, stage)
    if draws is None or site.path is None:
        return _Path(teacher, uncond, stage.guidance, substeps(nodes, stage.teacher_steps, stage.shift), site.teacher_identity)
    return _Path(site.velocity(site.path), None, 1.0, through(draws.levels, nodes), site.path_identity)


def _trajectories(
    stage: StudentStage,
    site: Site,
    path: _Path,
    told: Callable[[Sequence[int]], Conditioning],
    shape: tuple[int, int, int],
) -> Kept:
    """The states of a path at the student's levels, but for the noise that they start at."""

    def compute(numbers: range) -> Tensor:
        return path.states(_start(site, numbers, shape), told(numbers))[:, 1:]

    facts = [path.whose, site.source.fingerprint, site.recipe.seed, path.guidance, path.substeps]
    size = len(path.substeps) * math.prod(shape)
    return site.kept(site.named("trajectories", facts, shape), stage.trajectories, compute, size)
