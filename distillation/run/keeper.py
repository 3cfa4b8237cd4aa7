"""What happens beside a stage's steps: they are counted, recorded, shown, and kept now and then."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from distillation.loop import Run
from distillation.run import state
from distillation.run.processes import Processes
from distillation.run.records import METRICS, Display, Metrics
from distillation.run.signals import Stop
from distillation.stages import AnyStage

__all__ = ["Keeper"]

GOES_ON, SAVES, STOPS = range(3)


class Keeper:
    """Keeps a stage: ``checkpoints/`` and ``metrics.jsonl`` in its folder.

    Args:
        stage: that is under way.
        folder: its own.
        seconds: between checkpoints.
        identity: of the stage and all that it depends on.
        board: folder for TensorBoard's files.
        processes: that share the work.
        display: where progress is told.
        stop: whether the run is asked to stop.
    """

    def __init__(
        self,
        stage: AnyStage,
        folder: Path,
        seconds: float,
        identity: str,
        board: Path,
        processes: Processes,
        display: Display,
        stop: Stop,
    ) -> None:
        self.stage, self.folder, self.seconds, self.identity, self.board = stage, folder, seconds, identity, board
        self.processes, self.display, self.stop = processes, display, stop
        self.metrics: Metrics | None = None
        self._saved = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.metrics is not None:
            self.metrics.close()

    def restore(self, run: Run) -> None:
        """Take up the last checkpoint, where there is one.

        Raises:
            InputError: it is damaged.
        """
        checkpoint = state.latest(self.folder / "checkpoints", self.identity)
        if checkpoint is not None:
            state.load(checkpoint, run, self.processes)
            self.display.line(f"{self.stage.name}: goes on from step {run.step}")
        if self.processes.first:
            self.metrics = Metrics(self.folder / METRICS, run.step, self.board)

    def on_step(self, run: Run, record: dict[str, float]) -> bool:
        """Record a step; returns whether to stop after it.

        Raises:
            WritingError: what is to be kept cannot be written.
        """
        if self.metrics is not None:
            self.metrics.add(run.step, record)
        self.display.bar(self.stage.name, run.step, self.stage.steps, record)
        due = time.monotonic() - self._saved > self.seconds
        wish = self.processes.agreed(STOPS if self.stop.asked else SAVES if due else GOES_ON)
        if wish != GOES_ON:
            if self.metrics is not None:
                self.metrics.flush()
            state.save(self.folder / "checkpoints", run, self.identity, self.processes)
            self._saved = time.monotonic()
        return wish == STOPS
