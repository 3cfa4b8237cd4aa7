"""The stages of a distillation as data: what is learned, for how long, how fast; unknown keys are refused."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from distillation.fake import Fit
from distillation.levels import FOUR
from distillation.matching import Compare

__all__ = [
    "Adversarial",
    "AnyStage",
    "FlowStage",
    "Lora",
    "MatchStage",
    "Optimizer",
    "Stage",
    "TrajectoryStage",
    "VaeStage",
]

Positive = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Rate = Annotated[float, msgspec.Meta(gt=0)]
Weight = Annotated[float, msgspec.Meta(ge=0)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Optimizer(_Strict, frozen=True, kw_only=True):
    """How weights are moved.

    Attributes:
        kind: ``adamw``; ``muon`` for the matrices of the blocks and AdamW for the rest; ``adamw8bit`` of bitsandbytes, on GPUs.
        learning_rate: at its highest.
        matrix_learning_rate: muon's.
        decay: how the rate falls over the stage: not, or linearly or as a cosine to 0.
        warmup: steps over which it rises from 0.
        betas: of Adam.
        weight_decay: decoupled.
        clip: largest norm of the gradient; 0 for no limit.
    """

    kind: Literal["adamw", "muon", "adamw8bit"] = "adamw"
    learning_rate: Rate = 1e-4
    matrix_learning_rate: Rate = 0.02
    decay: Literal["none", "linear", "cosine"] = "none"
    warmup: Count = 0
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: Weight = 0.0
    clip: Weight = 1.0


class Lora(_Strict, frozen=True, kw_only=True):
    """Student and fake model as adapters on the teacher, not networks of their own (:mod:`distillation.networks.adapters`).

    Attributes:
        rank: columns of an adapter's first matrix, which are rows of its second.
        alpha: an adapter counts ``alpha / rank`` times.
        targets: how the names of the layers end that have adapters; by default the products of attention and feed-forward layers,
            of both streams. ``attn.to_q`` leaves the second attention (``attn2``) out.
    """

    rank: Positive = 64
    alpha: Rate = 64.0
    targets: tuple[str, ...] = (
        *("to_q", "to_k", "to_v", "to_out.0"),  # pictures, in both attentions
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # text
        *("net.0.proj", "net.2"),  # feed-forward of both
    )


class Stage(_Strict, frozen=True, kw_only=True, tag_field="kind"):
    """What all stages share.

    Attributes:
        name: of the stage, of its folder and of its random numbers.
        after: the stage whose networks it goes on from; none where it begins from nothing or from what the command is given.
        steps: of the optimizer.
        batch: samples a step, over all processes.
        optimizer: of the network that the stage is for.
        average: decay of the exponential moving average that the stage hands on; 0 hands on the weights themselves.
    """

    name: str = "stage"
    after: str = ""
    steps: Positive
    batch: Positive = 32
    optimizer: Optimizer = Optimizer()
    average: Share = 0.0


class FlowStage(Stage, frozen=True, kw_only=True, tag="flow"):
    """A teacher from data: rectified flow with logit-normal levels (SD3, 2403.03206, section 3.1).

    Attributes:
        location: mean of the levels' logit; above 0 leans towards noise.
        scale: its standard deviation.
    """

    location: float = 0.0
    scale: Rate = 1.0


class VaeStage(Stage, frozen=True, kw_only=True, tag="vae"):
    """An autoencoder from pictures: first on crops, which cost a quarter, then on whole ones, then its decoder alone.

    Attributes:
        crop: side of the crops, in pixels.
        crops: share of the steps that are made on them.
        decoder: share of the steps, at the end, in which the decoder learns alone, from latents with noise.
        latent_noise: of those latents, as a share of their standard deviation.
        divergence: weight of the KL divergence to the unit normal.
        square: weight of the squared error beside the absolute one.
    """

    crop: Positive = 32
    crops: Share = 0.6
    decoder: Share = 0.15
    latent_noise: Weight = 0.08
    divergence: Weight = 1e-6
    square: Weight = 2.0


class _Student(Stage, frozen=True, kw_only=True):
    """What the stages of a student share.

    Attributes:
        levels: of the student, from 1 down to 0.
        only: the steps that are trained, by number from 0; all where empty.
        guidance: the teacher's scale, 1 for none.
        teacher_steps: substeps of the teacher where its states do not come with the batches.
        shift: of the teacher's levels.
    """

    levels: tuple[float, ...] = FOUR
    only: tuple[Count, ...] = ()
    guidance: Weight = 1.0
    teacher_steps: Positive = 28
    shift: Rate = 3.0


class TrajectoryStage(_Student, frozen=True, kw_only=True, tag="trajectory"):
    """Trajectory guidance (:mod:`distillation.objectives.trajectory`)."""


class Adversarial(_Strict, frozen=True, kw_only=True):
    """Adversarial heads (:mod:`distillation.objectives.heads`).

    Attributes:
        weight: of the generator's loss; 0 for no heads.
        learning_rate: of the heads.
        r1: weight of the penalty.
    """

    weight: Weight = 0.0
    learning_rate: Rate = 1e-4
    r1: Weight = 0.1


class MatchStage(_Student, frozen=True, kw_only=True, tag="match"):
    """Distribution matching (:mod:`distillation.matching`).

    Attributes:
        compare: where teacher and fake model are compared.
        fake: what the fake model is fitted on.
        fake_steps: of the fake model for one of the student.
        fake_warmup: steps in which only the fake model learns, before the others.
        fake_optimizer: the fake model's; it has to be ahead of the student.
        fake_pull: share of the student's weights that the fake model takes over after each step (SenseFlow: .02).
        normalise: directions of one size, as DMD; without, the exact gradient.
        matching_weight: of the matching part; 0 leaves the guidance part alone.
        guidance_levels: levels at which the guidance part applies, (low, high].
        trajectory_weight: of trajectory guidance beside it, where the batches carry the teacher's states.
        adversarial: heads on the fake model's features.
    """

    compare: Compare = "shared"
    fake: Fit = "transition"
    fake_steps: Count = 3
    fake_warmup: Count = 0
    fake_optimizer: Optimizer = Optimizer(learning_rate=4e-4)
    fake_pull: Share = 0.0
    normalise: bool = True
    matching_weight: Weight = 1.0
    guidance_levels: tuple[Share, Share] = (0.0, 1.0)
    trajectory_weight: Weight = 0.0
    adversarial: Adversarial = Adversarial()


AnyStage = VaeStage | FlowStage | TrajectoryStage | MatchStage
