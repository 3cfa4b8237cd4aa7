"""One stage of a distillation, from networks and batches to weights that have learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distillation.batches import Batches, Networks, stream
from distillation.counters import Counter
from distillation.stages import (
    AnyStage,
    DecoderStage,
    FlowStage,
    MatchStage,
    QuantizeStage,
    TextStage,
    TrajectoryStage,
    VaeStage,
)
from distillation.training.decoder import DecoderStep
from distillation.training.flow import FlowStep
from distillation.training.match import MatchStep
from distillation.training.quantize import QuantizeStep
from distillation.training.text import TextStep
from distillation.training.trainee import Trainee
from distillation.training.trajectory import TrajectoryStep
from distillation.training.vae import VaeStep
from exporters.errors import InputError

__all__ = ["Outcome", "Run", "run_stage"]

Step = TextStep | VaeStep | FlowStep | TrajectoryStep | MatchStep | QuantizeStep | DecoderStep


@dataclass
class Run:
    """A stage under way: what a checkpoint has to hold.

    Attributes:
        trainees: the networks that learn, with optimizers and averages, by role.
        step: steps that are done.
    """

    trainees: dict[str, Trainee]
    step: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a stage came to.

    Attributes:
        steps: that were done, those of earlier runs included.
        finished: whether they are all that the stage has.
        records: of each step of this run: losses and what tells how it goes.
    """

    steps: int
    finished: bool
    records: list[dict[str, float]] = field(default_factory=list)


def run_stage(
    stage: AnyStage,
    networks: Networks,
    batches: Batches,
    seed: int,
    *,
    restore: Callable[[Run], None] = lambda run: None,
    on_step: Callable[[Run, dict[str, float]], bool | None] = lambda run, record: None,
) -> Outcome:
    """Train the networks of a stage in place; at its end ``networks.student`` holds what the stage hands on.

    Random numbers depend on the seed, the stage's name, the step and the sample alone (:mod:`distillation.counters`): the same
    call gives the same weights, and a run that was stopped and restored goes on as if it had not been.

    Args:
        stage: what to do.
        networks: who takes part; a stage of kind ``match`` needs all three.
        batches: a function of the step, or an iterable that begins at the first step of this run.
        seed: of the random numbers.
        restore: fills what a checkpoint holds into the run, its step too.
        on_step: told after each step; returning True ends the run there.

    Raises:
        DivergedError: a loss is no longer a number.
        InputError: something that the stage needs is absent.
    """
    if type(stage) not in _STEPS:
        raise InputError(f"no stage of kind {type(stage).__name__} makes steps.")
    step_of = _STEPS[type(stage)](stage, networks)
    run = Run(step_of.trainees)
    restore(run)
    records = []
    for number, batch in stream(batches, run.step, stage.steps):
        record = step_of(batch, Counter(seed, stage.name, number, batch.numbers), number)
        run.step = number + 1
        records.append(record)
        if on_step(run, record):
            break
    finished = run.step >= stage.steps
    if finished:
        for trainee in run.trainees.values():
            trainee.take_average()
    return Outcome(run.step, finished, records)


_STEPS: dict[type[AnyStage], Callable[[Any, Networks], Step]] = {
    TextStage: TextStep,
    VaeStage: VaeStep,
    FlowStage: FlowStep,
    TrajectoryStage: TrajectoryStep,
    MatchStage: MatchStep,
    QuantizeStage: QuantizeStep,
    DecoderStage: DecoderStep,
}
