"""Choose one scheme for every weight: a multiple-choice knapsack, solved exactly (HiGHS, by ``scipy.optimize.milp``).

``x[w, s]`` is 1 where weight ``w`` is stored in scheme ``s``; each weight takes one; errors, bytes and times add up.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quantization.errors import Complaint, InputError
from quantization.schemes import Scheme

RELATIVE_GAP = 1e-6  # of the optimum's proof; errors are estimates to some dB


class SearchError(InputError):
    """No choice meets the limits."""


@dataclass(frozen=True)
class Option:
    """One way to store a weight.

    Attributes:
        scheme: how.
        size_bytes: what it takes on disk.
        error: predicted mean square change of the picture.
        time: predicted time of its product, in units of the search's caller.
    """

    scheme: Scheme
    size_bytes: int
    error: float
    time: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What a choice must keep to; none for what is free."""

    size_bytes: float | None = None
    error: float | None = None
    time: float | None = None


_MEASURES: dict[str, Callable[[Option], float]] = {
    "size_bytes": lambda option: option.size_bytes,
    "error": lambda option: option.error,
    "time": lambda option: option.time,
}


def choose(weights: Sequence[Sequence[Option]], minimise: str, limits: Limits) -> list[Option]:
    """One option for each weight.

    Args:
        weights: the options of each.
        minimise: ``size_bytes``, ``error`` or ``time``.
        limits: on the sums.

    Raises:
        SearchError: no choice keeps to the limits; says what the least is.

    >>> from quantization.schemes import parse_scheme
    >>> big, small = parse_scheme("fp16"), parse_scheme("int8")
    >>> weights = [[Option(big, 20, 0.0), Option(small, 10, 1.0)], [Option(big, 20, 0.0), Option(small, 10, 5.0)]]
    >>> [option.scheme.name for option in choose(weights, "error", Limits(size_bytes=30))]
    ['int8', 'fp16']
    """
    for name, measure in _MEASURES.items():
        limit = getattr(limits, name)
        least = sum(min(measure(option) for option in options) for options in weights)
        if limit is not None and least > limit:
            complaint = Complaint(name, "cannot be met", f"at most {limit:.6g}", f"{least:.6g} at the very least")
            raise SearchError("No choice of schemes meets the limits.", [complaint], "raise the limit or allow smaller schemes")
    limit_of = {name: getattr(limits, name) for name in _MEASURES if getattr(limits, name) is not None}
    for _ in range(5):  # a solver's tolerance may overstep a limit by a millionth: then the next try is held shorter
        chosen = _solve(weights, minimise, limit_of)
        over = {name: sum(map(_MEASURES[name], chosen)) - getattr(limits, name) for name in limit_of}
        if all(excess <= 0 for excess in over.values()):
            return chosen
        limit_of = {name: limit - 2 * max(0.0, over[name]) for name, limit in limit_of.items()}
    raise SearchError("The limits are too close to the least possible.", [], "raise them a little")


def _solve(weights: Sequence[Sequence[Option]], minimise: str, limits: dict[str, float]) -> list[Option]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    flat = [option for options in weights for option in options]
    owner = np.repeat(np.arange(len(weights)), [len(options) for options in weights])
    one_each = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))), shape=(len(weights), len(flat)))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for name, limit in limits.items():
        shares = np.array([_MEASURES[name](option) for option in flat]) / (limit or 1.0)
        constraints.append(LinearConstraint(shares[None], -np.inf, 1 if limit else 0))
    wanted = np.array([_MEASURES[minimise](option) for option in flat])
    least = sum(min(_MEASURES[minimise](option) for option in options) for options in weights)
    scale = max(least, float(wanted.max()) * 1e-3) or 1.0
    with _quiet():
        solution = milp(
            wanted / scale,
            constraints=constraints,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": RELATIVE_GAP, "time_limit": 60.0},
        )
    if solution.x is None:
        raise SearchError("No choice of schemes meets the limits.", [Complaint("search", solution.message)], "raise the limits")
    return [flat[i] for i in np.flatnonzero(solution.x > 0.5)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS (in scipy 1.17) prints the name of one of its functions, past Python, whatever its options say."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
