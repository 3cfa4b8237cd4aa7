"""What a graph is before it is traced: its ports, its module, and where its weights come from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exporters.choices import Layout
from exporters.layouts.swift_schedule import ClientSchedule
from exporters.scales import Size
from exporters.student.student import Student
from exporters.student.weights.weight import Weight

Dim = int | str


VAE_SCALE = 8  # pixels per latent in SD3's VAE; checked against its configuration


@dataclass(frozen=True)
class Port:
    """One input or output: a name, a type (``float32``, ``int64``) and a shape whose symbolic sizes are names."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export.

    Attributes:
        name: ``denoiser``, ...
        path: file (or, of a Core ML program, folder) inside the bundle.
        components: the student's components that its weights come from.
        inputs: what it takes.
        outputs: what it returns.
        module: makes the module to trace; call it on the meta device.
        weights: finds the weight behind each of the module's tensors.
        largest_activation: numbers in its largest intermediate result.
        bands: of rows in which it is computed.
        shares: the graph that it differs from in size alone; what weights they have in common are stored once where a format can.
    """

    name: str
    path: str
    components: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    module: Callable[[], object]
    weights: Callable[[object], Mapping[str, Weight]]
    largest_activation: int
    bands: int = 1
    shares: str = ""

    @functools.cached_property
    def student_weights(self) -> dict[str, Weight]:
        """The student's tensors among its weights, by the name that they have in the module."""
        import torch

        with torch.device("meta"):
            module = self.module()
        return {name: weight for name, weight in self.weights(module).items() if weight.name}

    @property
    def parameters(self) -> int:
        """How many of the student's numbers it holds."""
        return sum(weight.elements for weight in self.student_weights.values())


@dataclass(frozen=True)
class GraphOptions:
    """What shapes the graphs of a bundle.

    Attributes:
        layout: ``native``, ``optimum`` or ``swift``.
        height: picture height in pixels.
        width: picture width in pixels.
        timesteps: the sampler's timesteps.
        clip_tokens: tokens of both CLIP encoders.
        keep_t5: keep the third text encoder; otherwise its tokens are null tokens.
        max_sequence_length: T5 tokens, or how many null tokens stand for them.
        dynamic: whether height and width may change at run time.
        client: what the client draws by (layout ``swift``).
        guided: whether its transformer computes for the negative prompt too (layout ``swift``; others are asked twice).
        sizes: rows and columns of latents that some steps, or pictures of other sizes, have in place of the picture's, where a
            graph has one size.
        other_sizes: height and width of pictures that can be drawn beside (layout ``native``, of fixed sizes).
        vae_bands: of rows in which the VAE is computed (layout ``native``, of a fixed size); 1 for all at once.
        vae_encoder: whether there is the VAE's encoder (layout ``native``; ``optimum`` always has it).
    """

    layout: Layout
    height: int
    width: int
    timesteps: tuple[float, ...]
    clip_tokens: int
    keep_t5: bool
    max_sequence_length: int
    dynamic: bool = False
    client: ClientSchedule | None = None
    guided: bool = False
    sizes: tuple[Size, ...] = ()
    other_sizes: tuple[Size, ...] = ()
    vae_bands: int = 1
    vae_encoder: bool = False

    @property
    def picture_sizes(self) -> tuple[Size, ...]:
        """Height and width of all pictures that can be drawn, the default first."""
        return ((self.height, self.width), *self.other_sizes)


def largest_encoded(config: Mapping[str, Any], options: GraphOptions) -> int:
    """Numbers in the largest result of a VAE's encoder, of its configuration."""
    channels = config.get("encoder_block_out_channels", config["block_out_channels"])
    return options.height * options.width * int(channels[0])


def weights_of(student: Student, component: str) -> Callable[[object], Mapping[str, Weight]]:
    return lambda module: module.weights(student.weights[component])  # type: ignore[attr-defined, no-any-return]
