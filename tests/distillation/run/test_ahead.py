"""Batches ahead are the same batches, and what goes wrong in one is raised at its step."""

from __future__ import annotations

import pytest
import torch

from distillation.batches import Batch
from distillation.run.jobs.ahead import ahead


def test_each_step_has_its_batch_once() -> None:
    begun = []

    def batches(step: int) -> Batch:
        begun.append(step)
        if step == 4:
            raise ValueError("damaged")
        return Batch(torch.full((1, 1), float(step)))

    taken = ahead(batches, 6)
    assert [taken(step).noise.item() for step in (2, 3)] == [2, 3]
    with pytest.raises(ValueError, match="damaged"):
        taken(4)
    assert taken(5).noise.item() == 5
    assert begun == [2, 3, 4, 5]
