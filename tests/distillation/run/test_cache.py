"""What is computed once: in files that are whole or absent, each computed together with as many as is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distillation.run.cache import PER_FILE, keep
from distillation.run.processes import Processes

COUNT = 5 * PER_FILE + 3


@pytest.mark.parametrize(("files", "computed"), [(1, COUNT - PER_FILE), (2, COUNT - PER_FILE), (16, COUNT)])
def test_all_is_kept_and_computed_once(files: int, computed: int, tmp_path: Path) -> None:
    """The second of six files is there already, and what it holds stays; between two that are absent it is computed with them."""
    (tmp_path / "kept").mkdir()
    before = np.full((PER_FILE, 2), -1, np.float16)
    np.save(tmp_path / "kept" / f"{PER_FILE:08d}-{PER_FILE}.npy", before)
    asked: list[range] = []

    def compute(numbers: range) -> torch.Tensor:
        asked.append(numbers)
        return torch.tensor([[number, number / 2] for number in numbers])

    kept = keep(tmp_path / "kept", COUNT, compute, Processes(), together=files)
    numbers = [0, PER_FILE - 1, PER_FILE, 2 * PER_FILE, COUNT - 1]
    expected = [[0, 0], [PER_FILE - 1, (PER_FILE - 1) / 2], [-1, -1], [2 * PER_FILE, PER_FILE], [COUNT - 1, (COUNT - 1) / 2]]
    assert kept[numbers].tolist() == expected
    assert max(map(len, asked)) == min(files * PER_FILE, COUNT)
    assert sum(map(len, asked)) == computed
    asked.clear()
    assert keep(tmp_path / "kept", COUNT, compute, Processes(), together=files)[numbers].tolist() == expected
    assert asked == []


def test_fewer_are_found_among_more(tmp_path: Path) -> None:
    """As embeddings are, of which stages ask for different numbers: whole files are shared."""
    asked: list[range] = []

    def compute(numbers: range) -> torch.Tensor:
        asked.append(numbers)
        return torch.tensor([[float(number)] for number in numbers])

    keep(tmp_path, COUNT, compute, Processes())
    asked.clear()
    assert keep(tmp_path, 3 * PER_FILE, compute, Processes())[[0, 2 * PER_FILE + 1]].tolist() == [[0], [2 * PER_FILE + 1]]
    assert asked == []
    assert keep(tmp_path, PER_FILE + 1, compute, Processes())[[PER_FILE]].tolist() == [[PER_FILE]]
    assert asked == [range(PER_FILE, PER_FILE + 1)]
