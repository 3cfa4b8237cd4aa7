"""A stage in one go, and the same one cut short, kept and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from distillation.batches import Batch, Batches, Networks
from distillation.loop import Run, run_stage
from distillation.run import state
from distillation.run.processes import Processes
from distillation.stages import FlowStage


class Wide(nn.Module):
    """Large enough for eight bits: bitsandbytes leaves less than 4096 numbers in 32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        return self.layer(x) * t[:, None]


def wide_batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    noise, x0 = torch.randn(2, 4, 64, generator=generator)
    return Batch(noise, x0=x0)


def check_it_goes_on(
    stage: FlowStage, begin: Callable[[], nn.Module], batches: Batches, folder: Path, processes: Processes, cut: int = 2
) -> None:
    """Bit for bit: weights and what is recorded.

    Args:
        stage: to make.
        begin: makes the network that learns, always the same.
        batches: of the stage.
        folder: for checkpoints.
        processes: where it computes.
        cut: the step after which it is cut short.
    """

    def run(name: str, stop: int) -> tuple[nn.Module, list[dict[str, float]]]:
        def restore(run: Run) -> None:
            if (checkpoint := state.latest(folder / name, "me")) is not None:
                state.load(checkpoint, run, processes)

        def keep(run: Run, record: dict[str, float]) -> bool:
            state.save(folder / name, run, "me", processes)
            return run.step == stop

        student = begin()
        return student, run_stage(stage, Networks(student), batches, seed=0, restore=restore, on_step=keep).records

    whole, records = run("whole", stage.steps)
    run("cut", cut)
    assert state.latest(folder / "cut", "me") is not None
    resumed, rest = run("cut", stage.steps)
    assert rest == records[cut:]
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
