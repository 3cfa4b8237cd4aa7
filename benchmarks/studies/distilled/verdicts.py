"""Verdicts of pictures, kept on disk as they come: a study that is stopped goes on with the pictures that are missing.

::

    OUT/verdicts/<digest of who draws and what is asked>/00000000-250.npy

A file is whole or absent, and holds one record a picture (:data:`RECORD`); pictures themselves are not kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.distilled.captions import MOST_OBJECTS, Captions
from benchmarks.studies.distilled.subjects import Draw, Subject
from distillation.run.records import Display
from distillation.shape_world import nearest_entry
from quantization.errors import Complaint, InputError
from quantization.files import UNREADABLE, write_array

__all__ = ["RECORD", "Verdicts", "judge"]

RECORD = np.dtype(
    [
        ("right", "?"),
        ("stray", "<f4"),  # share of pixels that are near no entry of the palette
        ("std", "<f4"),  # of the latents, which rises with oversaturation; NaN for the renderer
        ("places", "<f4", (MOST_OBJECTS, 3)),  # centres and half extents, of right pictures
    ]
)
VERSION = 1  # of what is kept: another one where scorers, renderer or records change
PER_FILE, BATCH = 250, 50  # a batch's size is part of its last bits, so it is one for all


class Verdicts:
    """Verdicts of a study's folder, and the processes that add to them.

    Args:
        folder: of the study.
        processes: that draw, of one thread each; 1 for this one.
        display: where progress is told.
    """

    def __init__(self, folder: Path, processes: int, display: Display) -> None:
        self.folder, self.processes, self.display = folder / "verdicts", processes, display
        self._pool: ProcessPoolExecutor | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep processes for what is asked meanwhile."""
        if self.processes == 1:
            yield
            return
        # spawn: a fork of a process in which torch has computed may hang
        pool = ProcessPoolExecutor(self.processes, get_context("spawn"), _one_thread)
        self._pool = pool
        try:
            yield
        finally:
            self._pool = None
            pool.shutdown(cancel_futures=True)

    def of(self, subject: Subject, captions: Captions, count: int) -> np.ndarray:
        """The verdicts of the first captions, ``[count]`` of :data:`RECORD`: those that are kept, and the others now.

        Raises:
            InputError: a file is damaged, or what is drawn is not finite.
            WritingError: a file cannot be written.
        """
        told = json.dumps([VERSION, subject.digest, captions.world, captions.seed])
        folder = self.folder / hashlib.sha256(told.encode()).hexdigest()[:24]
        parts = [range(start, min(start + PER_FILE, count)) for start in range(0, count, PER_FILE)]
        files = {folder / f"{part.start:08d}-{len(part)}.npy": part for part in parts}
        missing = [(subject, captions, part, file) for file, part in files.items() if not file.exists()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
        name = f"{subject.name}, {captions.world} captions"
        for done, _ in enumerate(self._work(missing), 1 + len(files) - len(missing)):
            self.display.bar(name, done, len(files))
        records: np.ndarray = np.concatenate([_read(file, len(part)) for file, part in files.items()])
        if missing:
            self.display.line(f"{name}: {records['right'].mean():.3f} of {count} right")
        return records

    def _work(self, tasks: Sequence[tuple[Subject, Captions, range, Path]]) -> Iterator[None]:
        if self._pool is None:
            for task in tasks:
                _judge_to_file(*task)
                yield
            return
        futures = [self._pool.submit(_judge_to_file, *task) for task in tasks]
        for future in as_completed(futures):
            future.result()
            yield


def judge(subject: Subject, captions: Captions, numbers: range) -> np.ndarray:
    """Draw and judge, ``[numbers]`` of :data:`RECORD`.

    Raises:
        InputError: what is drawn is not finite.
    """
    draw = _opened(subject, captions)
    records = np.zeros(len(numbers), RECORD)
    for start in range(0, len(numbers), BATCH):
        part = numbers[start : start + BATCH]
        asked = captions.those(part)
        pictures, latents = draw(asked, part)
        if not np.isfinite(pictures).all() or (latents is not None and not np.isfinite(latents).all()):
            complaint = Complaint(f"captions {part.start} to {part.stop - 1}", "pictures hold NaN or infinity")
            raise InputError(f"{subject.name} cannot be judged.", [complaint], "look at the stage that made it")
        for index, (picture, caption) in enumerate(zip(pictures, asked, strict=True)):
            right, places = captions.verdict(picture, caption)
            spread = np.nan if latents is None else latents[index].std()
            records[start + index] = right, (nearest_entry(picture) < 0).mean(), spread, places
    return records


@lru_cache(maxsize=1)
def _opened(subject: Subject, captions: Captions) -> Draw:
    """The last that was asked for: a process is given one subject's captions one after another."""
    return subject.open(captions)


def _judge_to_file(subject: Subject, captions: Captions, numbers: range, file: Path) -> None:
    write_array(file, judge(subject, captions, numbers))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _read(file: Path, count: int) -> np.ndarray:
    try:
        records: Any = np.load(file, allow_pickle=False)
        what = "" if records.dtype == RECORD and len(records) == count else f"{len(records)} records of {records.dtype}"
    except UNREADABLE as error:
        what = str(error)
    if what:
        raise InputError(f"{file} is damaged: {what}", remedy="remove it: its pictures are drawn again")
    verdicts: np.ndarray = records
    return verdicts
