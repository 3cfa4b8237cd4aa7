"""What a run will take, before it takes it: parameters, memory on each device, operations, hours. Nothing is loaded or computed.

Counted is what :mod:`distillation.training` does in a step and what torch keeps for it; how fast the machine is taken to be is
said with every figure (:class:`Speed`). Not counted: the CUDA context and fragmentation (1 to 2 GB), adversarial heads,
the passes of text encoders (1 to 2 % of SD3.5's), pictures that are drawn on the way, and reading data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from math import prod
from typing import Any

from distillation.levels import checked, substeps
from distillation.networks.cost import TEXT_TOKENS, TransformerCost, transformer_cost
from distillation.stages import AnyStage, FlowStage, Lora, MatchStage, Optimizer, TrajectoryStage
from exporters.errors import InputError
from exporters.student.weights.templates import expected_shapes

__all__ = ["Estimate", "Memory", "Passes", "Setting", "Speed", "StageEstimate", "estimate", "passes", "remarks", "rows"]

FP32, HALF = 4, 2  # bytes
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_ADAM = {
    "adamw": 8.0,
    "muon": 8.0,
    "adamw8bit": 2 + 8 / 256,
}  # two moments; of 8 bits each, with an fp32 scale for 256 (bitsandbytes)
_MUON = 4.0  # one momentum in fp32


@dataclass(frozen=True)
class Setting:
    """What a run is given beside its stages.

    Attributes:
        processes: that share a batch, one on each device.
        sharded: networks are shared among them too; adapters never are, each process holds their base.
        half: transformers compute in bfloat16, and those that do not learn are held in it.
        checkpointing: blocks are computed again on the way back.
        lora: student and fake model are adapters; none for networks of their own.
        height: of the pictures, in pixels.
        width: likewise.
        text_tokens: CLIP's and T5's together.
        trajectories: prompts whose teacher states are integrated once and kept, by the name of the stage that learns from them;
            other stages integrate them anew for each step.
        paths: steps of the student whose path a stage follows, by the name of that stage; others follow the teacher's.
    """

    processes: int = 1
    sharded: bool = False
    half: bool = True
    checkpointing: bool = True
    lora: Lora | None = None
    height: int = 1024
    width: int = 1024
    text_tokens: int = TEXT_TOKENS
    trajectories: Mapping[str, int] = field(default_factory=dict)
    paths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """How fast a device is taken to be.

    Attributes:
        device: what it is.
        tflops: its peak without sparsity, in 10^12 operations a second.
        utilisation: share of the peak that training reaches where it is the device that is waited for: assumed, not measured.
        launch: seconds in which the host starts the kernels of one pass of one block, however few samples, optimizers included:
            what small networks and small batches take. Measured with torch 2.11 beside an H200, blocks not compiled: 70 ms a step
            of a teacher of four blocks (12 such passes), 497 of matching it with kept trajectories (88); .49 s of following
            SD3.5-Medium with adapters (72: 6.8 ms each).
    """

    device: str = "H100 SXM, bf16"
    tflops: float = 989.0  # NVIDIA H100 data sheet: 1979 with sparsity
    utilisation: float = 0.4
    launch: float = 5.7e-3

    def hours(self, flops: float, starts: float = 0.0) -> float:
        """The time of so many operations, in so many passes of blocks: the device's or the host's, whichever is longer."""
        return max(flops / (self.tflops * 1e12 * self.utilisation), starts * self.launch) / 3600


@dataclass(frozen=True)
class Passes:
    """Passes through a transformer for one sample of a step.

    Attributes:
        teacher: of the teacher, without gradient.
        free: of student and fake model, without gradient.
        learning: of student and fake model, there and back.
    """

    teacher: int = 0
    free: int = 0
    learning: int = 0

    def forwards(self, *, checkpointing: bool, frozen: bool) -> int:
        """As forward passes: the way back is two of them, one for inputs and one for weights, which frozen ones do not need."""
        return self.teacher + self.free + self.learning * (2 + (not frozen) + checkpointing)


@dataclass(frozen=True)
class Memory:
    """What a device holds at most in a stage, in bytes.

    Attributes:
        weights: of the networks, adapters among them.
        gradients: of those that learn.
        optimizers: moments.
        averages: the student's exponential moving average.
        working: weights in bfloat16 for a pass: of a whole network, or of two blocks (this one and the next) where it is sharded.
        activations: what a pass keeps for the way back, all in the dtype that is computed in; autocast keeps norms in fp32, which
            may make it half as much again.
        encoders: text encoders.
        vae: the autoencoder.
    """

    weights: float
    gradients: float
    optimizers: float
    averages: float
    working: float
    activations: float
    encoders: float
    vae: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(astuple(self)))


@dataclass(frozen=True)
class StageEstimate:
    """What a stage takes.

    Attributes:
        name: its.
        passes: for a sample of one step.
        forwards: the same as forward passes.
        flops: of all its steps, over all devices; the drawing of trajectories that it keeps included.
        hours: of all its steps.
        memory: on each device.
    """

    name: str
    passes: Passes
    forwards: int
    flops: float
    hours: float
    memory: Memory


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        cost: of the transformer.
        setting: what was asked for.
        speed: what was assumed.
        stages: those that train or follow a transformer.
        others: names of those that do not, and are not estimated.
    """

    cost: TransformerCost
    setting: Setting
    speed: Speed
    stages: tuple[StageEstimate, ...]
    others: tuple[str, ...] = ()

    @property
    def hours(self) -> float:
        """Of all stages."""
        return sum(stage.hours for stage in self.stages)

    @property
    def bytes(self) -> float:
        """That the device of the largest stage has to have."""
        return max((stage.memory.total for stage in self.stages), default=0.0)


def estimate(
    configs: Mapping[str, Mapping[str, Any]],
    stages: Sequence[AnyStage],
    setting: Setting | None = None,
    speed: Speed | None = None,
) -> Estimate:
    """Say what a run will take.

    Args:
        configs: ``config.json`` of the teacher's components by name; the transformer's, and those of the encoders and the
            autoencoder that lie in memory beside it.
        stages: of the recipe.
        setting: all that the stages do not say.
        speed: of a device.

    Raises:
        InputError: there are no such pictures or adapters, or a batch cannot be shared.
        StudentError: a configuration is not one of its class.
    """
    setting, speed = setting or Setting(), speed or Speed()
    cost = transformer_cost(configs["transformer"], setting.height, setting.width, setting.text_tokens, setting.lora)
    sizes = {name: sum(map(prod, expected_shapes(name, dict(config)).values())) for name, config in configs.items()}
    itemsize = HALF if setting.half else FP32
    beside = {
        "encoders": float(itemsize * sum(sizes.get(name, 0) for name in _ENCODERS)),
        "vae": float(itemsize * sizes.get("vae", 0)),
    }
    followed, others = [], []
    for stage in stages:
        if isinstance(stage, FlowStage | TrajectoryStage | MatchStage):
            followed.append(_stage(stage, cost, setting, speed, beside))
        else:
            others.append(stage.name)
    return Estimate(cost, setting, speed, tuple(followed), tuple(others))


def passes(stage: AnyStage, *, kept: bool = False, path: int = 0) -> Passes:
    """What a step of a stage computes for each sample, as :mod:`distillation.training` does it.

    Args:
        stage: of the recipe.
        kept: the states that it follows come with the batches.
        path: steps of the student that draws them; 0 where the teacher does.
    """
    guided = 2 if isinstance(stage, TrajectoryStage | MatchStage) and stage.guidance != 1 else 1
    if isinstance(stage, TrajectoryStage):
        return Passes(teacher=0 if kept else _drawn(stage, path), learning=1)
    if isinstance(stage, MatchStage):
        steps = len(stage.levels) - 1
        heads = stage.adversarial.weight > 0
        followed = (kept or path > 0) and stage.trajectory_weight > 0
        return Passes(
            teacher=guided + (0 if kept else path),
            free=steps + 1 + 2 * heads,  # the rollout; the fake model's answer; features of real data and of drawn
            learning=stage.fake_steps + 1 + heads + followed,
        )
    return Passes(learning=1)


def _drawn(stage: TrajectoryStage | MatchStage, path: int) -> int:
    """Passes that draw a path to follow: a student's steps, or the teacher's with its guidance."""
    if path:
        return path
    parts = substeps(checked(stage.levels, stage.name), stage.teacher_steps, stage.shift)
    return (1 if stage.guidance == 1 else 2) * sum(len(part) - 1 for part in parts)


def _stage(
    stage: FlowStage | TrajectoryStage | MatchStage,
    cost: TransformerCost,
    setting: Setting,
    speed: Speed,
    beside: Mapping[str, float],
) -> StageEstimate:
    trajectories, path = setting.trajectories.get(stage.name, 0), setting.paths.get(stage.name, 0)
    step = passes(stage, kept=bool(trajectories), path=path)
    lora = setting.lora is not None and not isinstance(stage, FlowStage)  # a teacher learns whole
    forwards = step.forwards(checkpointing=setting.checkpointing, frozen=lora)
    flops = stage.steps * stage.batch * _flops(step, cost, checkpointing=setting.checkpointing, lora=lora)
    starts = stage.steps * forwards
    if isinstance(stage, MatchStage) and stage.fake_warmup:
        skipped = replace(step, free=step.free - (len(stage.levels) - 1), learning=step.learning - stage.fake_steps)
        saved = _flops(skipped, cost, checkpointing=setting.checkpointing, lora=lora)
        flops -= min(stage.fake_warmup, stage.steps) * stage.batch * saved
        starts -= min(stage.fake_warmup, stage.steps) * skipped.forwards(checkpointing=setting.checkpointing, frozen=lora)
    drawing = 0.0  # of many samples at once: the device's time alone
    if trajectories and not isinstance(stage, FlowStage):
        drawing = float(trajectories * _drawn(stage, path) * cost.flops)
    return StageEstimate(
        name=stage.name,
        passes=step,
        forwards=forwards,
        flops=flops + drawing,
        hours=speed.hours(flops / setting.processes, starts * cost.blocks) + speed.hours(drawing / setting.processes),
        memory=_memory(stage, cost, setting, beside, lora=lora, kept=bool(trajectories)),
    )


def _flops(step: Passes, cost: TransformerCost, *, checkpointing: bool, lora: bool) -> float:
    """Operations for one sample of a step; adapters learn whole on a base that does not."""
    adapters = lora * cost.adapter_flops * (step.free + step.learning * (3 + checkpointing))
    return float(cost.flops * step.forwards(checkpointing=checkpointing, frozen=lora) + adapters)


def _memory(
    stage: FlowStage | TrajectoryStage | MatchStage,
    cost: TransformerCost,
    setting: Setting,
    beside: Mapping[str, float],
    *,
    lora: bool,
    kept: bool,
) -> Memory:
    if stage.batch % setting.processes:
        raise InputError(
            f"stage {stage.name}: a batch of {stage.batch} cannot be shared by {setting.processes} processes: make it a multiple."
        )
    itemsize = HALF if setting.half else FP32
    whole, held = cost.parameters + cost.table, (cost.adapter if lora else cost.parameters)
    fakes = [stage.fake_optimizer] if isinstance(stage, MatchStage) else []
    optimizers = [stage.optimizer, *fakes]
    follows = isinstance(stage, MatchStage) or (isinstance(stage, TrajectoryStage) and not kept)
    shared = setting.processes if setting.sharded and not lora else 1
    path = setting.paths.get(stage.name, 0)
    networks = FP32 * whole * len(optimizers) + itemsize * whole * (follows + (path > 0))
    roles = itemsize * whole * (1 + (path > 0)) + 2 * FP32 * cost.adapter  # both are made, whether both learn or not
    step = passes(stage, kept=kept, path=path)
    graphs = step.learning - (stage.fake_steps if isinstance(stage, MatchStage) else 0)  # of the student's step, at once
    numbers = cost.kept_checkpointed if setting.checkpointing else cost.kept
    return Memory(
        weights=(roles if lora else networks) / shared,
        gradients=FP32 * held * len(optimizers) / shared,
        optimizers=sum(_moments(optimizer, cost, lora=lora) for optimizer in optimizers) / shared,
        averages=FP32 * held * bool(stage.average) / shared,
        working=float(_working(cost, setting, lora=lora)),
        activations=float(itemsize * numbers * graphs * stage.batch // setting.processes),
        **beside,
    )


def _moments(optimizer: Optimizer, cost: TransformerCost, *, lora: bool) -> float:
    """Bytes of what an optimizer remembers."""
    held, matrices = (cost.adapter, cost.adapter) if lora else (cost.parameters, cost.matrices)
    if optimizer.kind == "muon":
        return _MUON * matrices + _ADAM["muon"] * (held - matrices)
    return _ADAM[optimizer.kind] * held


def _working(cost: TransformerCost, setting: Setting, *, lora: bool) -> int:
    """Weights that are there for a pass alone."""
    if setting.sharded and not lora:
        return 2 * cost.block * (HALF if setting.half else FP32)
    if not setting.half:
        return 0
    return HALF * (cost.adapter if lora else cost.parameters)


def rows(run: Estimate) -> list[tuple[str, ...]]:
    """A table: stages, their passes, hours and memory; the first row says what is in the columns."""
    parts = ("weights", "gradients", "optimizers", "activations", "encoders and VAE")
    table: list[tuple[str, ...]] = [("stage", "forwards a sample", "PFLOP", "hours", "GB a device", *parts)]
    for stage in run.stages:
        memory = stage.memory
        networks = memory.weights + memory.averages + memory.working
        sizes = (memory.total, networks, memory.gradients, memory.optimizers, memory.activations, memory.encoders + memory.vae)
        hours = f"{stage.hours:.1f}" if stage.hours >= 1 else f"{stage.hours:.2f}"
        work = (str(stage.forwards), f"{stage.flops / 1e15:,.0f}", hours)
        table.append((stage.name, *work, *(f"{size / 1e9:.1f}" for size in sizes)))
    return table


def remarks(run: Estimate) -> list[str]:
    """What the figures are of, and what they assume, a line each."""
    cost, setting, speed = run.cost, run.setting, run.speed
    streams = ((cost.image, "pictures"), (cost.text, "text"), (cost.modulation, "modulation"))
    parts = ", ".join(f"{name} {count / 1e6:,.0f}" for count, name in streams)
    size = f"{setting.width}x{setting.height} with {setting.text_tokens} text tokens"
    lines = [
        f"transformer: {cost.parameters / 1e6:,.0f} M parameters ({parts}) and {cost.table / 1e6:,.0f} M numbers of positions",
        f"a forward pass at {size}: {cost.flops / 1e12:.3g} TFLOP",
        f"{setting.processes} x {speed.device} at {speed.utilisation:.0%} of {speed.tflops:g} TFLOP/s: assumed, not measured"
        + (f"; {1000 * speed.launch:g} ms of its host a block and pass at least" if speed.launch else ""),
        "memory without the CUDA context, fragmentation (1 to 2 GB) and adversarial heads; activations up to half as much again",
    ]
    if setting.lora is not None:
        lines.insert(
            1, f"adapters of rank {setting.lora.rank}: {cost.adapter / 1e6:,.1f} M parameters for each of student and fake model"
        )
    if run.others:
        lines.append(f"not estimated: {', '.join(run.others)}")
    return lines
