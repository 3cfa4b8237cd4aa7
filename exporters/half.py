"""Graphs that compute in fp16: which of their parts compute in fp32 all the same, and what the rest loses.

onnxruntime's CPU provider computes fp16 convolutions and products in fp32 and rounds where it must: what it makes of an fp16
graph is not what a GPU makes of it. Here the traced module itself is run by torch, its weights streamed
(:mod:`exporters.streamed.module`), in fp16 form: what every operator takes and makes is rounded, sums within an operator are
fp32, as they are in a GPU's matrix units.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporters.layouts.plan import plan_graphs
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import VAE_SCALE, GraphOptions, GraphSpec
from exporters.ranges import LIMIT, Arrays, growing_shares, rehearsal_of
from exporters.reference.case import Case
from exporters.reference.parity import worst_db
from exporters.restructure.base import PRODUCTS
from exporters.scales import unsized_graph
from exporters.streamed.module import Streaming, Watch, stream
from exporters.student.student import Student
from quantization.profile import Profile

REHEARSED_PIXELS = 256
"""Ranges are measured on pictures of at most this side: they are facts about weights, and a step at 1024 px takes minutes."""


def parts_ruled_fp32(spec: GraphSpec, profile: Profile) -> set[str]:
    """The parts of a graph's module whose weight a rule stores as fp32: they compute in fp32."""
    return {part for part, key in products(spec).items() if profile.scheme(*key).name == "fp32"}


def products(spec: GraphSpec) -> dict[str, tuple[str, str]]:
    """The parts of a graph's module that multiply by a student's matrix, and that matrix as (component, name)."""
    with torch.device("meta"):
        module: Any = spec.module()
    weights = spec.weights(module)
    weight_by_part = {}
    for part, layer in module.named_modules():
        weight = weights.get(f"{part}.weight")
        if isinstance(layer, PRODUCTS) and weight is not None and weight.name:
            weight_by_part[part] = (weight.component, weight.name)
    return weight_by_part


class Ranges:
    """What the parts of a student's graphs take and make in one picture (:class:`exporters.ranges.Rehearsal`).

    Args:
        student: the student.
        options: what shapes its graphs.
        sampling: the schedule.
    """

    def __init__(self, student: Student, options: GraphOptions, sampling: Sampling) -> None:
        patch = VAE_SCALE * student.configs["transformer"]["patch_size"]
        side = max(patch, REHEARSED_PIXELS // patch * patch)
        height, width = min(options.height, side), min(options.width, side)
        small = replace(options, height=height, width=width, vae_bands=1, sizes=(), other_sizes=())
        self._specs = plan_graphs(student, small)
        self._rehearsal = rehearsal_of(student, small, sampling)
        self._peaks: dict[str, dict[str, float]] = {}

    def too_wide(self, graph: str) -> set[str]:
        """The parts of a graph that take or make what comes near fp16's limit; graphs before it are drawn first."""
        graph, _ = unsized_graph(graph)
        for spec in self._specs:
            if graph in self._peaks:
                break
            if spec.name not in self._peaks:
                self._peaks[spec.name] = self._measure(spec)
        return {part for part, peak in self._peaks[graph].items() if not peak <= LIMIT}

    def _measure(self, spec: GraphSpec) -> dict[str, float]:
        peaks: dict[str, float] = defaultdict(float)

        def watch(part: str, value: Tensor) -> None:
            peak = float(value.abs().max())
            peaks[part] = max(peaks[part], peak if np.isfinite(peak) else np.inf)

        module = stream(spec, Streaming(compute=torch.float16, watch=watch))
        self._rehearsal.play(spec.name, lambda given: _run(module, spec, given))
        return dict(peaks)


@dataclass(frozen=True)
class HalfGraph:
    """A graph as hardware runs it that computes in fp16.

    Attributes:
        spec: the graph.
        profile: says which weights are stored as fp32; integer schemes count as fp16 here.
        wide: parts that compute in fp32.
    """

    spec: GraphSpec
    profile: Profile
    wide: frozenset[str] = frozenset()

    @functools.cached_property
    def products(self) -> dict[str, tuple[str, str]]:
        """As :func:`products`."""
        return products(self.spec)

    def runner(self) -> Callable[[Arrays], list[np.ndarray]]:
        """Runs it."""
        module = self._module()
        return lambda given: list(_run(module, self.spec, given).values())

    def overflow(self, given: Arrays) -> str:
        """The first of its parts whose result is not finite; of the graph itself where each part's is."""
        overflowing: list[str] = []

        def note(part: str, output: Tensor) -> None:
            if not output.isfinite().all():
                overflowing.append(part)

        self._listen(given, note)
        return overflowing[0] if overflowing else "between its products"

    def widened(self, cases: Sequence[Case], required_db: float) -> HalfGraph:
        """The same, with as many more of its parts in fp32 as it takes to be right: those first that lose most.

        Where all of them are not enough it comes back with all of them: then it is the weights themselves that lose.
        """
        graph = self
        if graph.worst_db(cases) < required_db:
            for more in growing_shares(self._parts_by_loss(cases[0].inputs)):
                graph = replace(self, wide=self.wide | {*more})
                if graph.worst_db(cases) >= required_db:
                    break
        return graph

    def worst_db(self, cases: Sequence[Case]) -> float:
        """As :func:`exporters.reference.parity.worst_db`."""
        return worst_db(cases, self.runner())

    def _parts_by_loss(self, given: Arrays) -> list[str]:
        """Parts that compute in fp16, those first whose result is furthest from what it is where nothing is rounded."""
        exact: dict[str, list[Tensor]] = defaultdict(list)
        losses: dict[str, float] = defaultdict(float)

        def keep(part: str, output: Tensor) -> None:
            exact[part].append(output.to(torch.float32))

        def compare(part: str, output: Tensor) -> None:
            losses[part] = max(losses[part], _loss(exact[part].pop(0), output.to(torch.float32)))

        self._listen(given, keep, rounds=False)
        self._listen(given, compare)
        return sorted(self.products.keys() - self.wide, key=lambda part: (-losses[part], part))  # tables read whole: last

    def _listen(self, given: Arrays, take: Callable[[str, Tensor], None], rounds: bool = True) -> None:
        """Run it, and tell of what each product makes."""
        module = self._module(None if rounds else lambda part, value: None)
        for part in self.products:
            module.get_submodule(part).register_forward_hook(functools.partial(_tell, take, part))
        _run(module, self.spec, given)

    def _module(self, watch: Watch | None = None) -> Any:
        """The graph's module; with a watch its products do not round."""
        exact = {key for key in self.products.values() if self.profile.scheme(*key).name == "fp32"}
        return stream(self.spec, Streaming(compute=torch.float16, wide=self.wide, exact=exact, watch=watch))


def _tell(take: Callable[[str, Tensor], None], part: str, module: Any, given: Any, output: Tensor) -> None:
    take(part, output)


def _loss(exact: Tensor, rounded: Tensor) -> float:
    """Relative error, squared; what is not finite any more comes first."""
    signal, noise = float(exact.square().sum()), float((exact - rounded).square().sum())
    return noise / signal if signal and np.isfinite(noise) else np.inf


def _run(module: Any, spec: GraphSpec, given: Arrays) -> Arrays:
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(given[port.name]) for port in spec.inputs))
    tensors = outputs if isinstance(outputs, tuple) else (outputs,)
    return {port.name: tensor.numpy() for port, tensor in zip(spec.outputs, tensors, strict=True)}
