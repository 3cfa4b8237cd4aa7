"""A stage's work, and the place where it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.data.batches import conditioning
from distillation.data.order import numbers_of
from distillation.data.settings import ShapesData
from distillation.data.source import Source
from distillation.networks.conditioning import Conditioning, TextEncoders
from distillation.networks.quantized import quantize
from distillation.networks.roles import VelocityTransformer, latent_shape
from distillation.recipe import Recipe
from distillation.run.cache import PER_FILE, Kept, keep, named
from distillation.run.lineage import CLIPS, INPUTS, PROFILE, Lineage
from distillation.run.processes import Processes
from distillation.run.records import Display
from distillation.run.signals import Stop
from distillation.stages import Stage
from quantization.profile import Profile, load_profile

__all__ = ["Job", "Site"]

NUMBERS_AT_ONCE, FILES_AT_ONCE = 1 << 22, 16
"""Of what is kept, that a GPU computes together at most: a thousand small samples fill it; of large ones a file is enough."""


@dataclass(frozen=True)
class Job:
    """What a stage does.

    Attributes:
        networks: that take part.
        batches: of each step.
        write: what the stage leaves, into a folder, once ``networks.student`` has learned; it is given that one's tensors, whole
            where those of the network are shared out.
    """

    networks: Networks
    batches: Callable[[int], Batch]
    write: Callable[[Path, Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Site:
    """Where a stage works.

    Attributes:
        recipe: that it belongs to.
        lineage: what it goes on from.
        origin: a digest of it.
        teacher: what its teacher is made of.
        teacher_identity: a digest of the teacher.
        branches: of a merge, what the two stages left.
        path: of a stage that follows the student of another one, what that left.
        path_identity: a digest of it.
        source: of prompts and pictures.
        processes: of the run.
        cache: folder for what is computed once.
        profile: of a stage that quantizes, as it was read when the run began.
        display: where progress is told.
        stop: whether the run is asked to stop.
    """

    recipe: Recipe
    lineage: Lineage
    origin: str
    teacher: Lineage
    teacher_identity: str
    source: Source
    processes: Processes
    cache: Path
    display: Display
    stop: Stop
    branches: tuple[Lineage, ...] = field(default=())
    path: Lineage | None = None
    path_identity: str = ""
    profile: Profile | None = None

    @property
    def like(self) -> Tensor:
        """A number where the networks compute."""
        return torch.zeros((), device=self.processes.device)

    def here(self, module: Any) -> Any:
        """A module where the networks compute."""
        return module.to(self.processes.device)

    def transformer(self, lineage: Lineage, *, frozen: bool = True) -> Any:
        """A lineage's transformer; in bfloat16 where it does not learn and the recipe computes in it."""
        transformer = lineage.component("transformer")
        return self.here(transformer.to(torch.bfloat16) if frozen and self.recipe.half else transformer)

    def text_encoders(self, width: int) -> TextEncoders:
        """The text encoders; in bfloat16 where the recipe computes in it: T5 is twice as large as all that learns.

        Args:
            width: of their tokens, the transformer's ``joint_attention_dim``.
        """
        encoders = self.lineage.text_encoders(width)
        held: TextEncoders = self.here(encoders.to(torch.bfloat16) if self.recipe.half else encoders)
        return held

    def velocity(self, lineage: Lineage, *, learns: bool = False, whole: bool = False) -> VelocityTransformer:
        """A lineage's transformer, where and as the recipe has it computed.

        Args:
            lineage: what it is made of.
            learns: whether its weights are moved.
            whole: on every process, also where the recipe shards networks.
        """
        return self.computed(self.transformer(lineage, frozen=not learns), learns=learns, whole=whole)

    def computed(self, transformer: Any, *, learns: bool = False, whole: bool = False) -> VelocityTransformer:
        """A transformer, where and as the recipe has it computed; the arguments are those of :meth:`velocity`."""
        transformer = self.here(transformer)
        recipe, blocks = self.recipe, transformer.transformer_blocks
        if learns:
            transformer.train().requires_grad_(True)
            if recipe.checkpointing:
                transformer.enable_gradient_checkpointing()
        if recipe.compile and self.like.is_cuda:
            for block in blocks:
                block.compile()
        if recipe.shard and not whole and self.processes.count > 1:
            self.processes.shard(transformer, blocks, half=recipe.half)
        return VelocityTransformer(transformer, half=recipe.half)

    def drawing(self, lineage: Lineage) -> VelocityTransformer:
        """A lineage's transformer as it draws: one that has learned with a profile computes with what that stores."""
        network = self.velocity(lineage, whole=True)
        if (profile := lineage.beside_transformer(PROFILE)) is not None:
            round_inputs = lineage.beside_transformer(INPUTS) is not None
            quantize(network.transformer, load_profile(profile), round_inputs=round_inputs)
        return network

    def latent_shape(self, config: Any) -> tuple[int, int, int]:
        """Of the latents that a transformer draws here, ``(channels, height, width)``.

        Args:
            config: the transformer's.
        """
        return latent_shape(config, self.recipe.resolution)

    def place(self, stage: Stage, step: int) -> Counter:
        """The random numbers of this process's samples of a step."""
        return Counter(self.recipe.seed, stage.name, step, self.processes.samples(stage.batch, f"stage {stage.name}"))

    def numbers(self, stage: Stage, step: int) -> list[int]:
        """Which of the source's samples this process takes in a step: each once before any comes again."""
        samples = self.processes.samples(stage.batch, f"stage {stage.name}")
        if isinstance(self.recipe.data, ShapesData):  # its scenes are independent of one another: in their own order
            return [(step * stage.batch + sample) % len(self.source) for sample in samples]
        return numbers_of(step, stage.batch, samples, len(self.source), self.recipe.seed)

    def within(self, numbers: Sequence[int]) -> list[int]:
        """Numbers of samples, begun anew where the source ends."""
        return [number % len(self.source) for number in numbers]

    def told(self, encoders: TextEncoders | None, numbers: Sequence[int]) -> Conditioning:
        """What the networks are told of some samples, where they compute."""
        return conditioning(self.source, self.within(numbers), encoders).to(self.like)

    def teller(self, encoders: TextEncoders | None, count: int) -> Callable[[Sequence[int]], Conditioning]:
        """What the networks are told of samples, by their numbers: encoded once where the recipe says so.

        Args:
            encoders: none where the data hold embeddings.
            count: of samples that are ever asked for; 0 where that is not known.
        """
        if encoders is None or not self.recipe.keep_embeddings or not count:
            return lambda numbers: self.told(encoders, numbers)
        example = self.told(encoders, [0])
        length = example.tokens[0].numel()

        def compute(numbers: range) -> Tensor:
            cond = self.told(encoders, numbers)
            return torch.cat([cond.tokens.flatten(1), cond.pooled], 1)

        folder = self.lineage.result(CLIPS[0])
        whose = self.teacher_identity if folder is None else folder.parent.parent.name
        name = self.named("embeddings", [whose, self.source.fingerprint], (length,))
        kept = self.kept(name, count, compute, length + example.pooled.shape[1])

        def told(numbers: Sequence[int]) -> Conditioning:
            rows = kept[numbers].to(self.like)
            tokens = rows[:, :length].reshape(len(rows), *example.tokens.shape[1:])
            return replace(example, tokens=tokens, pooled=rows[:, length:])

        return told

    def prompts(self, numbers: Sequence[int]) -> list[str]:
        """The prompts of some samples."""
        return [self.source.prompt(number) or "" for number in self.within(numbers)]

    def asked(self, numbers: Sequence[int]) -> Sequence[Any]:
        """What a network is asked to draw: prompts, or numbers of samples whose embeddings are held."""
        return self.within(numbers) if self.source.has_embeddings else self.prompts(numbers)

    def encoders(self, width: int) -> TextEncoders | None:
        """The text encoders that the networks are told by; none where the data hold embeddings.

        Args:
            width: of their tokens, the transformer's ``joint_attention_dim``.
        """
        return None if self.source.has_embeddings else self.text_encoders(width)

    def untold(self, encoders: TextEncoders | None, width: int) -> Conditioning | None:
        """The empty prompt; none where there are no text encoders at all."""
        if encoders is None and not self.lineage.has(CLIPS[0]):
            return None
        untold: Conditioning = (encoders or self.text_encoders(width))([""])
        return untold.to(self.like)

    def named(self, kind: str, told: Sequence[Any], shape: tuple[int, ...]) -> str:
        """A name for what is computed once, which depends on how large and how exact it is too.

        Args:
            kind: of what.
            told: what it depends on, as JSON has it.
            shape: of one sample's numbers.
        """
        return named(kind, json.dumps([*told, shape, self.recipe.half]))

    def kept(self, name: str, count: int, compute: Callable[[range], Tensor], size: int = NUMBERS_AT_ONCE) -> Kept:
        """What is computed once for some samples, or was.

        Args:
            name: of its folder.
            count: of samples.
            compute: the samples of these numbers.
            size: numbers of one sample: of small ones a GPU computes several files together, or it would mostly wait.
        """

        def tell(done: int, total: int) -> bool:
            self.display.bar(name.partition("-")[0], done, total)
            return self.stop.asked

        together = min(max(NUMBERS_AT_ONCE // (size * PER_FILE), 1), FILES_AT_ONCE) if self.like.is_cuda else 1
        return keep(self.cache / name, count, compute, self.processes, tell, together=together, lockstep=self.recipe.shard)
