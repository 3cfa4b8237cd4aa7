"""What an object does is in its description, wherever it is hidden; what says nothing of that is not."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from exporters.onnx.trace_description import Description, UnkeyableError

FACTOR = 2


def described(thing: Any) -> str:
    description = Description()
    description.add(thing)
    return description.digest()


def scaled(x: float) -> float:
    return FACTOR * x


def through_another(x: float) -> float:
    return scaled(x)


def within(x: float) -> Callable[[], float]:
    return lambda: next(scaled(y) for y in (x,))


def closed(factor: Any) -> Callable[[float], float]:
    return lambda x: factor * x


class Part:
    factor = 2

    def __init__(self, size: int = 3) -> None:
        self.size = size

    @property
    def area(self) -> float:
        return scaled(self.size)

    @staticmethod
    def fixed() -> float:
        return scaled(1)

    @classmethod
    def standard(cls) -> float:
        return scaled(1)


class Inherits(Part):
    pass


def with_attribute(value: Any) -> torch.nn.Module:
    module = torch.nn.Sequential(torch.nn.Identity())
    module[0].act = value
    return module


REACH_THE_FACTOR: dict[str, Any] = {
    "a function": scaled,
    "its caller": through_another,
    "a function within": within,
    "a closure": closed(scaled),
    "a partial": functools.partial(closed, scaled),
    "a bound method": Part().__init__,
    "an object": Part(),
    "a subclass": Inherits,
    "a list in a dictionary": {"parts": [Part]},
    "an attribute of a library's module": with_attribute(scaled),
}


@pytest.mark.parametrize("thing", REACH_THE_FACTOR.values(), ids=REACH_THE_FACTOR)
def test_a_global_that_changes_is_seen_from_everywhere(thing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = described(thing)
    assert described(thing) == before
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert described(thing) != before


UNLIKE: dict[str, tuple[Any, Any]] = {
    "a number and another type of it": (1, 1.0),
    "a number and a flag": (1, True),
    "signs of zero": (0.0, -0.0),
    "a list and a tuple": ([1], (1,)),
    "nesting": ([1, [2]], [[1], 2]),
    "text that looks like structure": (["a", "b"], ["a str 'b'"]),
    "order of a dictionary": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "closures": (closed(2), closed(3)),
    "defaults": (lambda x=1: x, lambda x=2: x),
    "keyword defaults": (lambda *, x=1: x, lambda *, x=2: x),
    "kinds of parameters": (lambda x: x, lambda *, x: x),
    "constants": (lambda x: x + 1, lambda x: x + 2),
    "names": (lambda x: x.real, lambda x: x.imag),
    "objects": (Part(1), Part(2)),
    "sharing": ([(one := []), one], [[], []]),
    "types of tensors": (torch.empty(2, device="meta"), torch.empty(2, device="meta", dtype=torch.float16)),
    "shapes of tensors": (torch.empty(2, 3, device="meta"), torch.empty(3, 2, device="meta")),
    "numbers of tensors": (torch.tensor([1.0]), torch.tensor([2.0])),
    "numbers of arrays": (np.array([1.0]), np.array([2.0])),
    "functions of a library": (torch.nn.functional.relu, torch.nn.functional.silu),
    "modules of a library": (torch.nn.SiLU(), torch.nn.GELU()),
    "options of a library's modules": (torch.nn.GELU("none"), torch.nn.GELU("tanh")),
}


@pytest.mark.parametrize(("one", "other"), UNLIKE.values(), ids=UNLIKE)
def test_what_differs_is_described_differently(one: Any, other: Any) -> None:
    assert described(one) != described(other)


def test_equal_objects_have_one_description() -> None:
    assert described(Part(1)) == described(Part(1))
    assert described(closed(2)) == described(closed(2))
    assert described({3, 1, 2}) == described({2, 3, 1})
    assert described(torch.zeros(2, dtype=torch.bfloat16)) == described(torch.zeros(2, dtype=torch.bfloat16))


def test_circles_end() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert described(circle) != described([[]])


def test_a_name_that_is_not_bound_yet() -> None:
    def early() -> str:
        return described(uses_later)

    def uses_later() -> int:
        return later

    before = early()
    later = 1
    assert early() != before


@dataclass
class Holder:
    thing: Any


@pytest.mark.parametrize("thing", [object(), threading.Lock(), iter([1]), {object()}], ids=["object", "lock", "iterator", "set"])
def test_what_has_no_description_is_refused(thing: Any) -> None:
    for holder in (thing, [thing], {"key": thing}, closed(thing), Holder(thing)):
        with pytest.raises(UnkeyableError):
            described(holder)
