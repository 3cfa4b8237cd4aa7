"""Runs that several tests look at: made once, read only."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillation.run.order import Order
from distillation.run.start import follow
from tests.distillation.run.tiny import BRANCHES, RECIPE, STUDENT, lay_out


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Order:
    """A run of all kinds of a student's stages, from a given teacher to a small decoder."""
    order = lay_out(tmp_path_factory.mktemp("whole"), RECIPE + STUDENT + BRANCHES)
    assert follow(order) == 0
    return order


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, to lay out other recipes in."""
    return lay_out(tmp_path_factory.mktemp("given")).out.parent
