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
    "DecoderStage",
    "FlowStage",
    "Lora",
    "MatchStage",
    "MergeStage",
    "Optimizer",
    "QuantizeStage",
    "Stage",
    "StudentStage",
    "TextStage",
    "TrajectoryStage",
    "VaeStage",
    "kind_of",
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


class TextStage(Stage, frozen=True, kw_only=True, tag="text"):
    """Text encoders of the captioned world from nothing, with their tokenizers (:mod:`distillation.world.text`)."""


class FlowStage(Stage, frozen=True, kw_only=True, tag="flow"):
    """A teacher from data: rectified flow with logit-normal levels (SD3, 2403.03206, section 3.1).

    Attributes:
        location: mean of the levels' logit; above 0 leans towards noise.
        scale: its standard deviation.
        layers: of a transformer that begins from nothing.
        pictures: whose latents are encoded once; all where the source has fewer.
        without_prompt: share of samples that are told the empty prompt, for guidance.
        without: share of samples for which each text encoder is zeros, CLIP-L, CLIP-G and T5 (SD3: .464 each).
    """

    location: float = 0.0
    scale: Rate = 1.0
    layers: Positive = 4
    pictures: Positive = 40_000
    without_prompt: Share = 0.1
    without: tuple[Share, Share, Share] = (0.0, 0.0, 0.0)


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


class StudentStage(Stage, frozen=True, kw_only=True):
    """What the stages of a student share.

    Attributes:
        levels: of the student, from 1 down to 0.
        without_t5: share of samples for which the student (and the fake model, never the teacher) is not told T5's tokens.
        trajectories: prompts whose teacher states are integrated once and kept; 0: anew for each step.
        nodes: levels at which those are kept, the student's among them; by default the student's. Students of the same nodes
            share them.
        path: the stage, one of those before, whose student draws the path that is followed, by its own steps and without
            guidance (progressive distillation, 2202.00512): far cheaper than the teacher's, whose it is where this is empty.
        only: the steps that are trained, by number from 0; all where empty.
        guidance: the teacher's scale, 1 for none.
        teacher_steps: substeps of the teacher where its states do not come with the batches.
        shift: of the teacher's levels.
    """

    levels: tuple[float, ...] = FOUR
    without_t5: Share = 0.0
    trajectories: Count = 0
    nodes: tuple[float, ...] = ()
    path: str = ""
    only: tuple[Count, ...] = ()
    guidance: Weight = 1.0
    teacher_steps: Positive = 28
    shift: Rate = 3.0


class TrajectoryStage(StudentStage, frozen=True, kw_only=True, tag="trajectory"):
    """Trajectory guidance (:mod:`distillation.objectives.trajectory`)."""


class Adversarial(_Strict, frozen=True, kw_only=True):
    """Adversarial heads (:mod:`distillation.objectives.heads`).

    What they take for real are the pictures at the ends of the stage's ``trajectories`` or ``path``; where it has neither, the
    latents of its data.

    Attributes:
        weight: of the generator's loss; 0 for no heads.
        learning_rate: of the heads.
        r1: weight of the penalty.
    """

    weight: Weight = 0.0
    learning_rate: Rate = 1e-4
    r1: Weight = 0.1


class MatchStage(StudentStage, frozen=True, kw_only=True, tag="match"):
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


class MergeStage(StudentStage, frozen=True, kw_only=True, tag="merge"):
    """Split-timestep fine-tuning's end: two stages that trained different steps become one network again.

    Attributes:
        branches: the two stages, both after this one's ``after``.
        ratios: candidates for the second one's share; the best on prompts of its own is taken. 0 and 1 are the branches alone.
        prompts: that decide.
    """

    steps: Positive = 1
    branches: tuple[str, str]
    ratios: tuple[Share, ...] = (0.0, 0.3, 0.5, 0.7, 1.0)
    prompts: Positive = 1000


class QuantizeStage(StudentStage, frozen=True, kw_only=True, tag="quantize"):
    """A student that learns to draw with quantized weights what it draws without (:mod:`distillation.training.quantize`).

    Attributes:
        profile: a file, which is found as the recipe's data are: from the recipe's folder.
        round_inputs: of layers whose inputs the runtime rounds.
        calibration: batches whose inputs tell the codes that learning begins at, by error feedback; 0 for rounding to nearest.
            Gram matrices of all layers are held meanwhile (10 GB of SD3.5-Medium's).
    """

    profile: str
    round_inputs: bool = False
    calibration: Count = 4


class DecoderStage(StudentStage, frozen=True, kw_only=True, tag="decoder"):
    """A small decoder, diffusers' ``AutoencoderTiny``, for what the student draws (:mod:`distillation.training.decoder`).

    Attributes:
        channels: of its four resolutions, the smallest first.
        blocks: residual blocks at each of them.
        latents: pictures of the student that are drawn once and kept.
        square: weight of the squared error beside the absolute one.
        encode: weight of the encoder's error.
    """

    channels: tuple[Positive, ...] = (64, 64, 64, 64)
    blocks: tuple[Positive, ...] = (3, 3, 3, 1)
    latents: Positive = 4096
    square: Weight = 1.0
    encode: Weight = 0.1


AnyStage = TextStage | VaeStage | FlowStage | TrajectoryStage | MatchStage | MergeStage | QuantizeStage | DecoderStage


def kind_of(stage: Stage) -> str:
    """The word that a recipe has for a stage's kind."""
    return str(type(stage).__struct_config__.tag)
