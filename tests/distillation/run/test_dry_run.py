"""What a run will take: steps counted by hand, memory by hand, and the steps of training counted as they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from distillation.batches import Batch, Networks
from distillation.loop import run_stage
from distillation.networks.cost import TransformerCost
from distillation.random_students import PRESETS, configs_of
from distillation.run.dry_run import Estimate, Passes, Setting, Speed, estimate, passes, remarks, rows
from distillation.stages import Adversarial, FlowStage, Lora, MatchStage, Optimizer, TrajectoryStage, VaeStage
from exporters.errors import InputError

LEVELS = (1.0, 0.75, 0.5, 0.0)
FLOW = FlowStage(name="flow", steps=10, batch=4)
FOLLOW = TrajectoryStage(name="follow", steps=10, batch=4, levels=LEVELS, guidance=2.0, teacher_steps=8)
MATCH = MatchStage(name="match", steps=10, batch=4, levels=LEVELS, guidance=2.0, fake_steps=3)


@pytest.mark.parametrize(
    ("stage", "kept", "wanted"),
    [
        (FLOW, False, Passes(learning=1)),
        (FOLLOW, False, Passes(teacher=16, learning=1)),
        (FOLLOW, True, Passes(learning=1)),
        (MatchStage(steps=1, levels=LEVELS, fake_steps=3), False, Passes(teacher=1, free=4, learning=4)),
        (MATCH, False, Passes(teacher=2, free=4, learning=4)),
        (
            MatchStage(steps=1, levels=LEVELS, fake_steps=5, trajectory_weight=0.1, adversarial=Adversarial(weight=0.01)),
            True,
            Passes(teacher=1, free=6, learning=8),
        ),
    ],
    ids=["flow", "trajectory", "kept trajectory", "match", "guided match", "match with everything"],
)
def test_passes(stage: Any, kept: bool, wanted: Passes) -> None:
    assert passes(stage, kept=kept) == wanted


def test_a_way_back_is_two_passes_and_one_more_with_checkpointing() -> None:
    """Frozen weights need no gradient of their own: the way back is one pass then."""
    step = Passes(teacher=2, free=4, learning=4)
    counted = {(c, f): step.forwards(checkpointing=c, frozen=f) for c in (False, True) for f in (False, True)}
    assert counted == {(False, False): 18, (True, False): 22, (False, True): 14, (True, True): 18}


class Counted(nn.Module):
    """A velocity that counts who asks, with gradient and without."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.free = self.learning = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.learning += len(x)
        else:
            self.free += len(x)
        return self.weight * x


@pytest.mark.parametrize("stage", [FLOW, FOLLOW, MATCH], ids=lambda stage: stage.name)
def test_steps_make_the_passes_that_are_counted(stage: Any) -> None:
    student, teacher, fake = Counted(), Counted(), Counted()

    def batch(step: int) -> Batch:
        return Batch(noise=torch.randn(4, 2), x0=torch.randn(4, 2), uncond=0)

    run_stage(stage, Networks(student, teacher, fake), batch, seed=0)
    samples = stage.steps * stage.batch
    wanted = passes(stage)
    assert teacher.free + teacher.learning == samples * wanted.teacher
    assert student.free + fake.free == samples * wanted.free
    assert student.learning + fake.learning == samples * wanted.learning


CONFIGS = configs_of(PRESETS["tiny"])
SETTING = Setting(height=64, width=64, text_tokens=7)
ONE = Speed("a device", tflops=1.0, utilisation=0.5, launch=0.0)


def taken(stage: Any, **changes: Any) -> Estimate:
    return estimate(CONFIGS, [stage], replace(SETTING, **changes), ONE)


def test_hours_are_operations_at_the_stated_speed() -> None:
    run = taken(MATCH)
    (stage,) = run.stages
    assert stage.flops == 40 * 22 * run.cost.flops
    assert stage.hours == run.hours == pytest.approx(stage.flops / 0.5e12 / 3600)
    assert taken(MATCH, processes=4).hours == run.hours / 4
    assert taken(MATCH, checkpointing=False).stages[0].flops == 40 * 18 * run.cost.flops


def test_a_small_network_waits_for_its_host() -> None:
    """22 passes a step for each block, and before the fake model has warmed up 15, however many samples and processes."""
    slow = replace(ONE, launch=0.25)
    stage = msgspec.structs.replace(MATCH, fake_warmup=4)
    for batch, processes in ((4, 1), (8, 2)):
        one = msgspec.structs.replace(stage, batch=batch)
        run = estimate(CONFIGS, [one], replace(SETTING, processes=processes), slow)
        assert run.cost.blocks == CONFIGS["transformer"]["num_layers"]
        assert run.hours == pytest.approx(0.25 * run.cost.blocks * (6 * 22 + 4 * (3 + 3 * 4)) / 3600)
    assert "250 ms of its host a block and pass at least" in "".join(remarks(run))
    kept = estimate(CONFIGS, [FOLLOW], replace(SETTING, trajectories={"follow": 100}), slow)
    assert kept.hours == pytest.approx((0.25 * kept.cost.blocks * 10 * 4 + 100 * 16 * kept.cost.flops / 0.5e12) / 3600)
    large = msgspec.structs.replace(stage, batch=1_000_000)
    assert estimate(CONFIGS, [large], SETTING, slow).hours == estimate(CONFIGS, [large], SETTING, ONE).hours


def test_steps_of_the_fake_model_alone_cost_less() -> None:
    """A step before the others is a rollout of three and three of the fake model's; the rest is saved."""
    run = taken(MatchStage(**{name: getattr(MATCH, name) for name in MATCH.__struct_fields__} | {"fake_warmup": 5}))
    assert run.stages[0].flops == 4 * (5 * 22 + 5 * (3 + 3 * 4)) * run.cost.flops


def test_kept_trajectories_are_drawn_once() -> None:
    run = taken(FOLLOW, trajectories={"follow": 100})
    assert run.stages[0].flops == (100 * 16 + 40 * 4) * run.cost.flops


def test_the_path_of_a_student_is_its_own_steps() -> None:
    """Four steps and no guidance, where the teacher takes eight and is asked twice; its network lies beside the others."""
    assert passes(FOLLOW, path=4) == Passes(teacher=4, learning=1)
    assert passes(FOLLOW, kept=True, path=4) == Passes(learning=1)
    near = msgspec.structs.replace(MATCH, trajectory_weight=0.5)
    assert passes(near, path=4) == Passes(teacher=2 + 4, free=4, learning=5)
    run = taken(FOLLOW, trajectories={"follow": 100}, paths={"follow": 4})
    assert run.stages[0].flops == (100 * 4 + 40 * 4) * run.cost.flops
    more = run.stages[0].memory.weights - taken(FOLLOW, trajectories={"follow": 100}).stages[0].memory.weights
    assert more == 2 * (run.cost.parameters + run.cost.table)


def test_adapters_learn_on_weights_that_do_not() -> None:
    run = taken(MATCH, lora=Lora(rank=4))
    assert run.stages[0].flops == 40 * (18 * run.cost.flops + (4 + 4 * 4) * run.cost.adapter_flops)
    whole = taken(FLOW, lora=Lora(rank=4))
    assert whole.stages[0].flops == 40 * 4 * whole.cost.flops  # a teacher learns whole


def made(cost: TransformerCost) -> tuple[int, int]:
    return cost.parameters, cost.parameters + cost.table


@pytest.mark.parametrize(
    ("stage", "changes", "weights", "others"),
    [
        (FLOW, {}, lambda n, a: 4 * a, lambda n: (4 * n, 8 * n, 0, 2 * n)),
        (FOLLOW, {}, lambda n, a: 4 * a + 2 * a, lambda n: (4 * n, 8 * n, 0, 2 * n)),
        (FOLLOW, {"trajectories": {"follow": 1}}, lambda n, a: 4 * a, lambda n: (4 * n, 8 * n, 0, 2 * n)),
        (MATCH, {}, lambda n, a: 8 * a + 2 * a, lambda n: (8 * n, 16 * n, 0, 2 * n)),
        (MATCH, {"half": False}, lambda n, a: 12 * a, lambda n: (8 * n, 16 * n, 0, 0)),
    ],
    ids=["flow", "trajectory", "kept trajectory", "match", "match in fp32"],
)
def test_memory_of_networks(
    stage: Any, changes: dict[str, Any], weights: Callable[[int, int], int], others: Callable[[int], tuple[int, ...]]
) -> None:
    """Bytes of weights, gradients, moments, averages and copies for a pass, by parameters and all numbers that are stored."""
    run = taken(stage, **changes)
    learned, stored = made(run.cost)
    memory = run.stages[0].memory
    assert memory.weights == weights(learned, stored)
    assert (memory.gradients, memory.optimizers, memory.averages, memory.working) == others(learned)
    assert run.bytes == memory.total


def test_memory_of_adapters() -> None:
    run = taken(MATCH, lora=Lora(rank=4), processes=2, sharded=True)
    memory, adapter = run.stages[0].memory, run.cost.adapter
    assert memory.weights == 2 * made(run.cost)[1] + 8 * adapter  # each process holds the base, whatever is sharded
    assert (memory.gradients, memory.optimizers, memory.working) == (8 * adapter, 16 * adapter, 2 * adapter)


def test_memory_of_shards() -> None:
    whole, shard = taken(MATCH).stages[0].memory, taken(MATCH, processes=2, sharded=True).stages[0].memory
    for name in ("weights", "gradients", "optimizers"):
        assert getattr(shard, name) == getattr(whole, name) / 2
    assert shard.activations == whole.activations / 2  # half of the batch
    assert shard.working == 2 * 2 * taken(MATCH).cost.block
    assert (shard.encoders, shard.vae) == (whole.encoders, whole.vae)


def test_memory_of_optimizers_and_averages() -> None:
    stage = MatchStage(
        steps=1,
        levels=LEVELS,
        average=0.9,
        optimizer=Optimizer(kind="muon"),
        fake_optimizer=Optimizer(kind="adamw8bit"),
    )
    run = taken(stage)
    learned = run.cost.parameters
    muon = 8 * learned - 4 * run.cost.matrices
    assert run.stages[0].memory.optimizers == muon + (2 + 8 / 256) * learned
    assert run.stages[0].memory.averages == 4 * learned


def test_activations_are_the_batch_s_share() -> None:
    run = taken(FLOW, checkpointing=False)
    assert run.stages[0].memory.activations == 4 * 2 * run.cost.kept
    checkpointed = taken(FLOW)
    assert checkpointed.stages[0].memory.activations == 4 * 2 * run.cost.kept_checkpointed


def test_rows_and_remarks() -> None:
    run = estimate(CONFIGS, [VaeStage(name="vae", steps=1), FLOW, MATCH], replace(SETTING, lora=Lora(rank=4)), ONE)
    assert [row[0] for row in rows(run)] == ["stage", "flow", "match"]
    assert {len(row) for row in rows(run)} == {10}
    said = "\n".join(remarks(run))
    assert "1 x a device at 50% of 1 TFLOP/s: assumed, not measured" in said
    assert "not estimated: vae" in said
    assert "adapters of rank 4" in said
    assert estimate(CONFIGS, [], SETTING).bytes == 0


def test_sd35_medium_on_one_card() -> None:
    """By hand: 2.47 G numbers in bfloat16, two adapters of 94 M with 16 bytes each, an average: 8.3 GB before activations."""
    configs = {"transformer": configs_of(PRESETS["full"])["transformer"]}
    stage = MatchStage(name="match", steps=800, batch=4, guidance=4.5, fake_steps=5, average=0.999)
    run = estimate(configs, [stage], Setting(height=512, width=512, lora=Lora()))
    memory = run.stages[0].memory
    assert memory.total - memory.activations - memory.working == pytest.approx(8.3e9, rel=0.01)
    assert memory.total < 24e9
    assert run.speed == Speed("H100 SXM, bf16", 989.0, 0.4)


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(InputError, match="stage flow: a batch of 4 cannot be shared by 3 processes"):
        taken(FLOW, processes=3)
