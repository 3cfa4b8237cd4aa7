"""A step of distribution matching: the fake model follows the student, then the student moves towards the teacher."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from distillation import fake
from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.flow import diffuse, euler, expand, x0
from distillation.matching import HIGHEST, LOWEST, Comparison, compare, direction, place, surrogate
from distillation.objectives import heads as adversarial
from distillation.objectives import trajectory
from distillation.objectives.branches import update_average
from distillation.objectives.guidance import parts
from distillation.stages import MatchStage, Optimizer
from distillation.training.trainee import Trainee
from distillation.training.trajectory import Segments, ends
from exporters.errors import InputError

__all__ = ["MatchStep"]


class MatchStep:
    """One rollout of the student a step, which all parts of the step share."""

    def __init__(self, stage: MatchStage, networks: Networks) -> None:
        if networks.teacher is None or networks.fake is None:
            raise InputError(f"stage {stage.name} matches a student to a teacher by a fake model: give all three networks.")
        self.stage, self.segments = stage, Segments(stage)
        self.teacher, self.fake, self.features = networks.teacher, networks.fake, networks.features
        self.trainees = {"student": Trainee.of_student(stage, networks.student)}
        if isinstance(networks.fake, nn.Module):
            self.trainees["fake"] = Trainee("fake", networks.fake, stage.fake_optimizer, stage.steps)
        elif stage.fake_steps or stage.fake_pull:
            raise InputError(
                f"stage {stage.name}: a fake model that learns is a torch module, got {type(networks.fake).__name__}."
            )
        if stage.fake_pull and _shapes(networks.fake) != _shapes(networks.student):
            raise InputError(f"stage {stage.name}: fake_pull needs a fake model and a student of one architecture.")
        self.heads = networks.heads if stage.adversarial.weight else None
        if stage.adversarial.weight:
            if networks.heads is None or networks.features is None:
                raise InputError(f"stage {stage.name} has an adversarial weight: it needs heads and the fake model's features.")
            settings = Optimizer(learning_rate=stage.adversarial.learning_rate)
            self.trainees["heads"] = Trainee("heads", networks.heads, settings, stage.steps)

    @property
    def student(self) -> nn.Module:
        """The network that learns to draw."""
        return self.trainees["student"].module

    def __call__(self, batch: Batch, counter: Counter, step: int) -> dict[str, float]:
        """One step; returns what is to be recorded."""
        with torch.no_grad():
            states = torch.stack(euler(self.student, batch.noise, self.segments.levels, batch.cond), 1)
        record = {}
        for turn in range(self.stage.fake_steps):
            record["fake_loss"] = self._fit_fake(batch, states, counter, step, turn)
        if step < self.stage.fake_warmup:
            return record
        return record | self._move_student(batch, states, counter, step)

    def _fit_fake(self, batch: Batch, states: Tensor, counter: Counter, step: int, turn: int) -> float:
        index, before, after = self.segments.draw(counter, f"fake segments {turn}", states)
        uniform = counter.uniform(f"fake levels {turn}", states)
        noise = counter.normal(f"fake noise {turn}", batch.noise.shape[1:], states)
        x_i, x_s = ends(states, index)
        if self.stage.fake == "transition":
            s = after
            highest = before.clamp(max=HIGHEST).maximum(after + 1e-3)
            t = highest - (highest - after) * uniform
        else:
            final = self.stage.fake == "finals"
            x_s = states[:, -1] if final else x0(x_i, before, trajectory.target(x_i, x_s, before, after))
            s, t = torch.zeros_like(after), LOWEST + (HIGHEST - LOWEST) * uniform
        loss = fake.loss(self.fake, x_s, s, t, noise, batch.cond)
        self.trainees["fake"].learn(loss, step)
        return loss.item()

    def _move_student(self, batch: Batch, states: Tensor, counter: Counter, step: int) -> dict[str, float]:
        stage = self.stage
        index, before, after = self.segments.draw(counter, "segments", states)
        x_i, _ = ends(states, index)
        v = self.student(x_i, before, batch.cond)
        noise = counter.normal("noise", batch.noise.shape[1:], states)
        seen = compare(stage.compare, x_i, before, after, v.detach(), noise, counter.uniform("levels", states))
        gradient, record = self._gradient(batch, seen, x0(x_i, before, v.detach()))
        loss = surrogate(v, gradient)
        if stage.trajectory_weight and batch.states is not None:
            guide = trajectory.loss(self.student, *ends(batch.states, index), before, after, batch.cond)
            record["trajectory_loss"] = guide.item()
            loss = loss + stage.trajectory_weight * guide
        if self.heads is not None:
            felt = place(stage.compare, x_i, before, after, v, seen.level, noise)
            loss = loss + stage.adversarial.weight * self._ask_heads(batch, seen, felt, counter, record)
        record["gradient"] = self.trainees["student"].learn(loss, step)
        if stage.fake_pull:
            fake_weights, weights = list(self.trainees["fake"].module.parameters()), list(self.student.parameters())
            update_average(fake_weights, weights, 1 - stage.fake_pull)
        return record

    @torch.no_grad()
    def _gradient(self, batch: Batch, seen: Comparison, clean: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The gradient in the student's velocity, and what tells how the matching goes."""
        stage = self.stage
        v_fake = self.fake(seen.x, seen.level, batch.cond)
        v_cond = self.teacher(seen.x, seen.level, batch.told_teacher)
        v_uncond = v_cond if stage.guidance == 1 else self.teacher(seen.x, seen.level, batch.uncond)
        matching, push = parts(v_cond, v_uncond, v_fake, stage.guidance)
        low, high = stage.guidance_levels
        push = push * expand(((seen.level > low) & (seen.level <= high)).to(push), push)
        v_real = v_fake + stage.matching_weight * matching + push
        gradient = direction(seen.x, seen.level, v_real, v_fake, clean if stage.normalise else None)
        if not stage.normalise:
            gradient = expand(seen.reach, gradient) * gradient
        return gradient, {
            "gap": float(_size(matching) / _size(v_cond)),  # falls as the laws come together
            "push": float(_size(push) / _size(matching)),
            "cosine": float(torch.cosine_similarity(v_fake.flatten(1), v_cond.flatten(1)).mean()),
            "clean_std": float(clean.std()),  # rises with oversaturation
        }

    def _ask_heads(self, batch: Batch, seen: Comparison, felt: Tensor, counter: Counter, record: dict[str, float]) -> Tensor:
        """Teach the heads to tell real data from the student's, then ask them: the loss that the student feels."""
        assert self.heads is not None
        assert self.features is not None
        real_data = batch.clean(f"{self.stage.name}, whose heads tell drawn from real,")
        noise = counter.normal("real noise", batch.noise.shape[1:], seen.x)
        with torch.no_grad():
            real = self.features(diffuse(real_data, seen.level, noise), seen.level, batch.cond)
            drawn = self.features(seen.x, seen.level, batch.cond)
        loss = adversarial.discriminator_loss(self.heads(real), self.heads(drawn))
        loss = loss + self.stage.adversarial.r1 * adversarial.r1(self.heads, real)
        trainee = self.trainees["heads"]
        trainee.learn(loss, counter.step)
        record["heads_loss"] = loss.item()
        together = replace(counter, samples=range(len(self.heads)))  # the same on every process
        chances = together.uniform("refresh", torch.zeros((), dtype=torch.float64)).tolist()
        adversarial.refresh(self.heads, chances, trainee.optimizers[0], seed=counter.seed + 1000 * counter.step)
        return adversarial.generator_loss(self.heads(self.features(felt, seen.level, batch.cond)))


def _size(x: Tensor) -> Tensor:
    return x.square().mean().sqrt().clamp(min=1e-12)


def _shapes(network: object) -> list[torch.Size]:
    return [parameter.shape for parameter in network.parameters()] if isinstance(network, nn.Module) else []
