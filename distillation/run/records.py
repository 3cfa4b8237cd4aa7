"""What a run tells: a line of metrics for each step, TensorBoard's files, a progress bar, sample grids."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from exporters.errors import InputError
from quantization.files import append_to, write_text, writing

__all__ = ["METRICS", "Display", "Metrics", "write_grid"]

METRICS = "metrics.jsonl"
"""In a stage's folder, of the first process."""


class Metrics:
    """The metrics of a stage, ``metrics.jsonl``: a line for each step, in order and each once, also after a resume.

    Args:
        file: the file.
        step: from which the stage goes on: later lines, of steps that are made again, go.
        board: folder for TensorBoard's files; they are written where the package is installed.
    """

    def __init__(self, file: Path, step: int, board: Path) -> None:
        self.file, self._began, self._cpu = file, time.perf_counter(), time.process_time()
        _cut(file, step)
        self._stream = append_to(file)
        self._board = _board(board, step)

    def add(self, step: int, record: dict[str, float]) -> None:
        """What a step came to, with the time that it took: wall seconds, and this process's CPU seconds."""
        now, cpu = time.perf_counter(), time.process_time()
        line = {"step": step, **record, "seconds": round(now - self._began, 4), "cpu_seconds": round(cpu - self._cpu, 4)}
        self._began, self._cpu = now, cpu
        with writing(self.file):
            self._stream.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in record.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Before a checkpoint: its steps' lines are on disk when it is."""
        with writing(self.file):
            self._stream.flush()

    def close(self) -> None:
        """No more is added."""
        with writing(self.file):
            self._stream.close()
        if self._board is not None:
            self._board.close()


def _cut(file: Path, step: int) -> None:
    """Leave the lines of the first steps alone; a last one that was cut short goes too."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text("utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line)
    write_text(file, "".join(f"{line}\n" for line in kept))


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:  # without the extra [distill] the lines are all there is
        return None
    return SummaryWriter(str(folder), purge_step=step, flush_secs=30)  # type: ignore[no-untyped-call]


class Display:
    """Lines for the log, and on a terminal a bar; silent in all processes but the first.

    Args:
        shown: whether this process shows anything.
    """

    def __init__(self, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, TextColumn("{task.fields[told]}"), console=self._console)
        self._progress.disable = not (shown and sys.stderr.isatty())
        self._task: Any = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """A line that stays."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def bar(self, name: str, done: int, total: int, record: dict[str, float] | None = None) -> None:
        """How far something is."""
        told = "  ".join(f"{key} {value:.4g}" for key, value in list((record or {}).items())[:3])
        if self._task is None or self._progress.tasks[-1].description != name:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(name, total=total, told="")
        self._progress.update(self._task, completed=done, total=total, told=told)


def write_grid(file: Path, rows: Sequence[Tensor]) -> None:
    """Write pictures as a PNG: a row for each network, one column a prompt.

    Args:
        file: to write.
        rows: ``[prompts, 3, height, width]`` in [0, 1] each.

    Raises:
        InputError: a picture holds NaN or infinity.
    """
    import io

    import torch
    from PIL import Image

    from quantization.files import write_bytes

    grid = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    if not bool(grid.isfinite().all()):
        raise InputError(f"{file.name}: a picture holds NaN or infinity.")
    stream = io.BytesIO()
    Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).cpu().numpy()).save(stream, "PNG")
    write_bytes(file, stream.getvalue())
