"""A weight that is known by name, shape and type, and read only when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

TORCH_FLOATS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""Types of weights that are stored as codes, as torch calls them."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a student, or one derived from several.

    Attributes:
        shape: its shape.
        dtype: its numpy type (``float16``, ``bfloat16`` of ml_dtypes, ``float32``, ``int64``).
        load: reads or computes it. What comes back may be a view of a memory-mapped file: do not write to it.
        origin: where it comes from, as a user would look for it (``transformer: proj_out.weight``).
        component: the student's component that it is a tensor of; empty for what is computed at export.
        name: its diffusers name there.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    origin: str
    component: str = ""
    name: str = ""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))
