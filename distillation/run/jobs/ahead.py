"""Batches put together while the step before is computed: a GPU does not wait for pictures to be read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from distillation.batches import Batch

__all__ = ["ahead"]


def ahead(batches: Callable[[int], Batch], steps: int) -> Callable[[int], Batch]:
    """The same batches, each begun in a thread when the one before it is asked for; errors are raised at their own step.

    Args:
        batches: of each step.
        steps: of the stage: none is begun after the last.
    """
    thread = ThreadPoolExecutor(1, "batches")
    begun: dict[int, Future[Batch]] = {}

    def batch(step: int) -> Batch:
        taken = begun.pop(step, None) or thread.submit(batches, step)
        if step + 1 < steps:
            begun[step + 1] = thread.submit(batches, step + 1)
        return taken.result()

    return batch
