"""Who draws: networks of a run and of students, and controls of which it is known what has to come out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.studies.distilled.captions import Captions

__all__ = ["Control", "Network", "Subject"]

Draw = Callable[[Sequence[Any], Sequence[int]], tuple[np.ndarray, np.ndarray | None]]
"""Captions and their numbers to pictures ``[captions, 64, 64, 3]`` in [0, 1] and, of a network, its latents."""


@dataclass(frozen=True)
class Network:
    """A network, and how it is sampled.

    Attributes:
        name: in tables.
        identity: a digest of its weights.
        levels: from 1 down to 0.
        folder: of a student in diffusers' layout; none for what the stages of a run have left.
        results: folders of those, the nearest first.
        t5_length: T5's window, in tokens.
        guidance: 1 for none.
        without_t5: T5's tokens as zeros.
        seed: of the noise.
        profile: file of the profile that its weights are rounded to, none where empty.
    """

    name: str
    identity: str
    levels: tuple[float, ...]
    folder: Path | None = None
    results: tuple[Path, ...] = ()
    t5_length: int = 0
    guidance: float = 1.0
    without_t5: bool = False
    seed: int = 0
    profile: Path | None = None

    @cached_property
    def digest(self) -> str:
        """Of all that its pictures depend on, its captions left out; of places on the disk nothing."""
        rounded = "" if self.profile is None else self.profile.read_text("utf-8")
        told = [self.identity, self.levels, self.t5_length, self.guidance, self.without_t5, self.seed, rounded]
        return _digest(told)

    @property
    def steps(self) -> int:
        """Euler steps."""
        return len(self.levels) - 1

    def named(self, name: str, **changes: Any) -> Network:
        """The same weights, sampled otherwise."""
        return replace(self, name=name, **changes)

    def open(self, captions: Captions) -> Draw:
        """Load it.

        Raises:
            InputError: a component cannot be read.
        """
        from distillation.networks.drawing import Sampler, decode
        from distillation.networks.quantized import quantize
        from distillation.networks.roles import VelocityTransformer, latent_shape
        from distillation.run.lineage import Lineage
        from exporters.quiet import quiet_libraries
        from exporters.student.open import open_student
        from quantization.profile import load_profile

        quiet_libraries()
        lineage = Lineage(None if self.folder is None else open_student(self.folder), self.results, self.t5_length)
        transformer, vae = lineage.component("transformer"), lineage.component("vae")
        if self.profile is not None:
            quantize(transformer, load_profile(self.profile))
        sampler = Sampler(
            network=VelocityTransformer(transformer),
            levels=self.levels,
            encode=lineage.text_encoders(transformer.config.joint_attention_dim),
            shape=latent_shape(transformer.config),
            guidance=self.guidance,
            without_t5=self.without_t5,
            seed=self.seed,
        )

        def draw(asked: Sequence[Any], numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            latents = sampler.latents([str(caption) for caption in asked], numbers[0])
            return decode(vae, latents).permute(0, 2, 3, 1).cpu().numpy(), latents.cpu().numpy()

        return draw


@dataclass(frozen=True)
class Control:
    """Pictures of the renderer.

    Attributes:
        name: in tables.
        way: true pictures; one place for all captions of a kind; or one picture for each caption, whatever the noise.
        seed: of the noise.
    """

    name: str
    way: Literal["true", "one place", "one a caption"] = "true"
    seed: int = 0
    steps: int = field(default=0, init=False)

    @cached_property
    def digest(self) -> str:
        """Of its way and seed."""
        return _digest([self.way, self.seed])

    def open(self, captions: Captions) -> Draw:
        """The renderer."""

        def seed_of(caption: Any, number: int) -> int:
            if self.way == "one place":
                return 0
            if self.way == "one a caption":
                return int(_digest(str(caption))[:8], 16)
            return ((1 + self.seed) << 32) + number

        def draw(asked: Sequence[Any], numbers: Sequence[int]) -> tuple[np.ndarray, None]:
            drawn = [captions.true_picture(one, seed_of(one, number)) for one, number in zip(asked, numbers, strict=True)]
            return np.stack(drawn), None

        return draw


Subject = Network | Control


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
