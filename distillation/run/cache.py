"""What is computed once for a stage and kept: arrays by sample number, in files of some samples each.

A file is whole or absent, so that a run that was cut off goes on with the first that is missing. Processes share the files out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillation.run.processes import Processes
from distillation.run.signals import Interrupted
from exporters.errors import InputError
from quantization.files import write_array

__all__ = ["Kept", "keep", "named"]

PER_FILE = 64


@dataclass(frozen=True)
class Kept:
    """Arrays of ``count`` samples, read from disk as they are asked for."""

    files: tuple[np.ndarray, ...]
    count: int

    def __getitem__(self, numbers: Sequence[int]) -> Tensor:
        """Those of some samples, ``[numbers, ...]``, in fp16 as they are kept."""
        return torch.from_numpy(np.stack([self.files[number // PER_FILE][number % PER_FILE] for number in numbers]))


def named(kind: str, told: str) -> str:
    """The name of a folder of such arrays.

    Args:
        kind: of what is kept.
        told: all that it depends on.
    """
    return f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def keep(
    folder: Path,
    count: int,
    compute: Callable[[range], Tensor],
    processes: Processes,
    on_file: Callable[[int, int], bool] = lambda done, total: False,
    *,
    together: int = 1,
    lockstep: bool = False,
) -> Kept:
    """Compute what is not there yet, and open all.

    Args:
        folder: of the files; its name tells what they hold.
        count: of samples.
        compute: the samples of these numbers, ``[numbers, ...]``; kept in fp16.
        processes: all of which call this.
        on_file: told how many of this process's turns are over, and of how many; returns whether to stop, and where one process
            does, all do.
        together: files that are computed in one turn, at most: fewer where processes would go without.
        lockstep: what computes is shared out over the processes: where one of them computes, all have to.

    Raises:
        Interrupted: it was stopped; the files that are there are kept.
        InputError: a file is damaged, or what is computed does not fit into fp16.
        WritingError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranges = [range(start, min(start + PER_FILE, count)) for start in range(0, count, PER_FILE)]
    files = [(numbers, folder / f"{numbers.start:08d}-{len(numbers)}.npy") for numbers in ranges]
    together = max(1, min(together, len(files) // processes.count))
    parts = [files[start : start + together] for start in range(0, len(files), together)]
    own = len(parts[processes.rank :: processes.count])
    for turn, part in enumerate(processes.turns(parts), 1):
        missing = [(numbers, file) for numbers, file in part or () if not file.exists()]
        if processes.agreed(bool(missing)) if lockstep else missing:
            span = range(missing[0][0].start, missing[-1][0].stop) if missing else ranges[0]
            array = compute(span).half().cpu().numpy()
            for numbers, file in missing:
                own_part = array[numbers.start - span.start : numbers.stop - span.start]
                if not np.isfinite(own_part).all():
                    raise InputError(f"What was computed for {file} holds NaN or infinity.", remedy="look at the stage before")
                write_array(file, own_part)
        if processes.agreed(on_file(min(turn, own), own)):
            raise Interrupted
    return Kept(tuple(_open(file, len(numbers)) for numbers, file in files), count)


def _open(file: Path, count: int) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        what = "" if len(array) == count else f"{len(array)} samples in place of {count}"
    except (OSError, ValueError, EOFError) as error:
        what = str(error) or type(error).__name__
    if what:
        raise InputError(f"{file} is damaged: {what}", remedy="remove it: it is computed again")
    return array
