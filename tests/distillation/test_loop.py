"""Stages from end to end on data whose answer is known, and what stops or goes on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillation.batches import Batch, Networks
from distillation.loop import Run, run_stage
from distillation.objectives.heads import Heads
from distillation.stages import Adversarial, FlowStage, MatchStage, Optimizer, TrajectoryStage
from distillation.training.trainee import DivergedError
from quantization.errors import InputError
from tests.distillation.gaussian import ExactFake, Linear, Teacher, law

LEVELS = (1.0, 0.75, 0.5, 0.0)


def noise(step: int, count: int = 128) -> Tensor:
    half = torch.randn(count // 2, 1, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return torch.cat([half, -half])


def batch(step: int) -> Batch:
    return Batch(noise=noise(step), x0=1 + 0.5 * noise(10_000 + step))


class Polynomial(nn.Module):
    """A velocity that is linear in x, with coefficients that are polynomials of t."""

    def __init__(self, degree: int = 4) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(2, degree + 1, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        slope, intercept = self.coefficients @ torch.stack([t**k for k in range(self.coefficients.shape[1])])
        return slope[:, None] * x + intercept[:, None]

    def features(self, x: Tensor, t: Tensor, cond: Any = None) -> list[Tensor]:
        return [torch.stack([x, self(x, t, cond)], -1)]  # one token of two


class Segmented(nn.ModuleList):
    """A polynomial for each of the student's segments; a level belongs to the step that ends there."""

    def __init__(self) -> None:
        super().__init__(Polynomial(2) for _ in LEVELS[1:])

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        segment = sum((t < level).long() for level in LEVELS[1:-1])
        return torch.stack([part(x, t) for part in self])[segment, torch.arange(len(x))]


def untrained() -> Linear:
    return Linear(LEVELS, [0.1, 0.2, 0.3], [-1.0, -1.0, -1.0])


def test_a_teacher_from_data() -> None:
    """Rectified flow on N(1, .25): the velocity at t = .3 to .8 is the exact one within a few per cent."""
    learned = Polynomial()
    stage = FlowStage(name="teacher", steps=800, optimizer=Optimizer(learning_rate=0.05, decay="cosine"))
    run_stage(stage, Networks(learned), batch, seed=1)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for level in (0.3, 0.5, 0.8):
        t = torch.full((2,), level, dtype=torch.float64)
        assert torch.allclose(learned(x, t), Teacher()(x, t), atol=0.15)


def test_a_student_that_follows_the_teacher() -> None:
    """The last step's segment ends in the data's law; without the batches' states the teacher's path is integrated."""
    student = untrained()
    stage = TrajectoryStage(
        name="follow", steps=200, levels=LEVELS, teacher_steps=120, optimizer=Optimizer(learning_rate=0.05, decay="cosine")
    )
    run_stage(stage, Networks(student, Teacher()), batch, seed=1)
    for got, level in zip(student.laws(), LEVELS, strict=True):
        assert got == pytest.approx(law(level), abs=0.03)  # Euler's error: 28 steps lose .047 of the variance, 120 a quarter


def test_matching_with_a_fake_that_learns() -> None:
    """Nothing exact but the teacher: from wrong laws to the teacher's at every level, the last step on fresh noise."""
    student, fake = untrained(), Segmented()
    before = student.laws()
    stage = MatchStage(
        name="match", steps=400, levels=LEVELS, fake_steps=3, fake_warmup=50, fake_optimizer=Optimizer(learning_rate=0.05),
        optimizer=Optimizer(learning_rate=0.02, decay="cosine"), average=0.9,
    )  # fmt: skip
    outcome = run_stage(stage, Networks(student, Teacher(), fake), batch, seed=1)
    assert outcome.finished
    assert max(abs(a - b) for got, level in zip(before, LEVELS, strict=True) for a, b in zip(got, law(level), strict=True)) > 0.2
    for got, level in zip(student.laws(), LEVELS, strict=True):
        assert got == pytest.approx(law(level), abs=0.08)


def test_only_the_named_steps_move() -> None:
    student = untrained()
    run_stage(
        MatchStage(name="part", steps=5, levels=LEVELS, only=(1,)), Networks(student, Teacher(), Polynomial()), batch, seed=0
    )
    moved = (student.slope - untrained().slope).abs() > 0
    assert moved.tolist() == [False, True, False]


@pytest.mark.parametrize("compare", ["shared", "segment", "renoise"])
@pytest.mark.parametrize("fake", ["transition", "finals", "predictions"])
def test_every_pair_runs_with_guidance_and_heads(compare: str, fake: str) -> None:
    network = Polynomial()
    stage = MatchStage(
        name="all", steps=3, levels=LEVELS, compare=compare, fake=fake, guidance=2.0, guidance_levels=(0.2, 0.9),
        trajectory_weight=0.1, adversarial=Adversarial(weight=0.03),
    )  # fmt: skip
    states = torch.stack([noise(k) for k in range(4)], 1)
    networks = Networks(untrained(), Teacher(), network, features=network.features, heads=Heads([2]).double())
    outcome = run_stage(stage, networks, lambda step: Batch(noise=noise(step), states=states, x0=noise(step + 7)), seed=0)
    assert {"gap", "push", "cosine", "clean_std", "fake_loss", "heads_loss", "trajectory_loss"} <= outcome.records[-1].keys()


def test_the_fake_is_pulled_to_the_student() -> None:
    student, fake = untrained(), Linear(LEVELS, [1.1, 1.2, 1.3], [0.0, 0.0, 0.0])
    stage = MatchStage(name="pull", steps=1, levels=LEVELS, fake_steps=0, fake_pull=0.25, optimizer=Optimizer(learning_rate=1e-9))
    run_stage(stage, Networks(student, Teacher(), fake), batch, seed=0)
    assert fake.slope.tolist() == pytest.approx([0.85, 0.95, 1.05], abs=1e-6)
    assert fake.intercept.tolist() == pytest.approx([-0.25] * 3, abs=1e-6)


def stages() -> list[Any]:
    return [
        FlowStage(name="s", steps=6, average=0.9, optimizer=Optimizer(decay="linear", warmup=3)),
        TrajectoryStage(name="s", steps=6, levels=LEVELS),
        MatchStage(name="s", steps=6, levels=LEVELS, fake_steps=2, average=0.5),
    ]


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: type(stage).__name__)
def test_the_same_call_gives_the_same_weights_and_a_stopped_run_goes_on_as_if_it_had_not_been(stage: Any) -> None:
    def networks() -> Networks:
        student = Polynomial() if isinstance(stage, FlowStage) else untrained()
        return Networks(student, Teacher(), Polynomial())

    whole, again, broken = networks(), networks(), networks()
    losses = run_stage(stage, whole, batch, seed=3).records
    assert run_stage(stage, again, batch, seed=3).records == losses
    kept: dict[str, Any] = {}

    def stop(run: Run, record: dict[str, float]) -> bool:
        if run.step == 4:
            kept["step"] = run.step
            kept["trainees"] = copy.deepcopy({
                role: (trainee.module.state_dict(), [o.state_dict() for o in trainee.optimizers], trainee.average)
                for role, trainee in run.trainees.items()
            })  # fmt: skip
        return run.step == 4

    def restore(run: Run) -> None:
        run.step = kept["step"]
        for role, (weights, optimizers, average) in kept["trainees"].items():
            trainee = run.trainees[role]
            trainee.module.load_state_dict(weights)
            for optimizer, state in zip(trainee.optimizers, optimizers, strict=True):
                optimizer.load_state_dict(state)
            for mine, saved in zip(trainee.average, average, strict=True):
                mine.copy_(saved)

    first = run_stage(stage, broken, batch, seed=3, on_step=stop)
    assert (first.steps, first.finished) == (4, False)
    resumed = networks()
    second = run_stage(stage, resumed, batch, seed=3, restore=restore)
    assert first.records + second.records == losses
    for one, other in zip(whole.student.parameters(), resumed.student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_iterable_of_batches_will_do() -> None:
    student = untrained()
    stage = TrajectoryStage(steps=4, levels=LEVELS)
    outcome = run_stage(stage, Networks(student, Teacher()), (batch(k) for k in range(9)), seed=0)
    assert (outcome.steps, outcome.finished) == (4, True)
    short = run_stage(stage, Networks(student, Teacher()), [batch(0)], seed=0)
    assert (short.steps, short.finished) == (1, False)


def test_what_a_loader_may_yield() -> None:
    results = []
    for form in (lambda x: x, lambda x: {"noise": x, "cond": None}, lambda x: Batch(noise=x)):
        student = untrained()
        stage = TrajectoryStage(steps=3, levels=LEVELS)
        run_stage(stage, Networks(student, Teacher()), [form(noise(step)) for step in range(3)], seed=0)
        results.append(student.slope.detach().clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("content", [{"cond": 1}, {"noise": 1, "colour": 2}, 3, "noise", [1]])
def test_what_is_no_batch(content: Any) -> None:
    with pytest.raises(InputError, match="A batch is a Batch, a tensor of starting states, or a mapping of"):
        Batch.of(content)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"noise": torch.zeros(4, 3), "x0": torch.zeros(3, 3)}, r"x0: another shape .*expected \[4, 3\], got \[3, 3\]"),
        ({"noise": torch.zeros(4, 3), "x0": torch.zeros(4, 2)}, "x0: another shape"),
        ({"noise": torch.zeros(4, 3), "states": torch.zeros(4, 5, 2)}, "states: another shape"),
        ({"noise": torch.full((4, 3), torch.nan)}, "noise: holds NaN"),
        ({"noise": torch.zeros(4, 3), "x0": torch.full((4, 3), torch.inf)}, "x0: holds NaN or infinity"),
        ({"noise": torch.zeros(4, 0), "x0": torch.full((4, 3), torch.nan)}, "x0: holds NaN"),
        ({"noise": torch.zeros(4, 3), "samples": [1]}, "samples: numbers .*expected 4, got 1"),
    ],
)
def test_batches_that_cannot_be_learned_from(parts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batch(**parts)


def test_a_fake_that_makes_no_steps_may_be_any_velocity() -> None:
    student = untrained()
    exact = ExactFake(student, "transition")
    stage = MatchStage(steps=2, levels=LEVELS, fake_steps=0)
    run_stage(stage, Networks(student, Teacher(), lambda x, t, cond: exact(x, t)), batch, seed=0)
    assert not torch.equal(student.slope, untrained().slope)
    with pytest.raises(InputError, match="a fake model that learns is a torch module"):
        run_stage(MatchStage(steps=2, levels=LEVELS), Networks(student, Teacher(), lambda x, t, cond: x), batch, seed=0)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_before_anything_changes(where: str) -> None:
    student = untrained()

    class Poisoned(Teacher):
        def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            return super().forward(x, t, cond) * (float("nan") if where == "loss" else 1e200)

    stage = TrajectoryStage(name="follow", steps=3, levels=LEVELS)
    with pytest.raises(DivergedError, match=r"student: step 0: the loss is (.|\n)*lower student's learning rate") as caught:
        run_stage(stage, Networks(student, Poisoned()), batch, seed=0)
    assert "still good" in str(caught.value)
    assert torch.equal(student.slope, untrained().slope)


@pytest.mark.parametrize(
    ("stage", "networks", "message"),
    [
        (FlowStage(steps=1), Networks(untrained()), "carry none"),
        (TrajectoryStage(steps=1, levels=LEVELS), Networks(untrained()), "follows a teacher"),
        (MatchStage(steps=1, levels=LEVELS), Networks(untrained(), Teacher()), "all three networks"),
        (MatchStage(steps=1, levels=LEVELS, only=(3,)), Networks(untrained(), Teacher(), Polynomial()), "counted from 0"),
        (TrajectoryStage(steps=1, levels=(1, 2, 0)), Networks(untrained(), Teacher()), "from 1 down to 0"),
        (
            MatchStage(steps=1, levels=LEVELS, adversarial=Adversarial(weight=0.1)),
            Networks(untrained(), Teacher(), Polynomial()),
            "needs heads",
        ),
        (
            MatchStage(steps=1, levels=LEVELS, fake_pull=0.1),
            Networks(untrained(), Teacher(), Polynomial()),
            "one architecture",
        ),
        ("a stage", Networks(untrained()), "no stage of kind str"),
    ],
)
def test_what_is_absent_is_said(stage: Any, networks: Networks, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_stage(stage, networks, lambda step: Batch(noise=noise(step)), seed=0)


def test_the_exact_fake_of_a_student_is_its_law() -> None:
    """A check of the tests' own world: where a state has the teacher's law, its fake is the teacher."""
    student = Linear((1.0, 0.0), [(1 - 0.5) / 1.0], [-1.0])
    assert student.laws()[-1] == pytest.approx((1.0, 0.25))
    x, t = noise(0, 8), torch.full((8,), 0.4, dtype=torch.float64)
    for fit in ("transition", "finals"):
        assert torch.allclose(ExactFake(student, fit)(x, t), Teacher()(x, t))
