"""LoRAs merged into a student's weights, or what keeps them from it; nothing is read yet but headers, alphas, and for NaN."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.errors import Complaint, StudentError
from exporters.hashing import hash_file
from exporters.student.weights.lora.file import LoraFile, open_lora
from exporters.student.weights.lora.fit import Fitted, fit
from exporters.student.weights.lora.layers import read_layers
from exporters.student.weights.lora.merge import Change, merged
from exporters.student.weights.lora.modules import COMPONENTS, Modules
from exporters.student.weights.lora.source import Lora
from exporters.student.weights.weight import Weight

Weights = dict[str, dict[str, Weight]]
_MANY = 5  # of what is wrong with many layers alike


@dataclass(frozen=True)
class Merged:
    """A LoRA that was merged.

    Attributes:
        name: of its file, with PEFT's folder before it.
        scale: as it was asked for.
        files: that it is read from, the tensors first.
        layers: how many of each component it changes.
        ranks: of its products, each once.
        unused: components that it changes too, and that are not there.
    """

    name: str
    scale: float
    files: tuple[Path, ...]
    layers: Mapping[str, int]
    ranks: tuple[int, ...]
    unused: tuple[str, ...] = ()

    def sha256(self, progress: Callable[[int], None] | None = None) -> str:
        """Of its tensors' file."""
        return hash_file(self.files[0], progress)

    def identity(self, progress: Callable[[int], None] | None = None) -> str:
        """What its effect depends on, files and scale, in a line."""
        return f"lora:{':'.join(hash_file(file, progress) for file in self.files)}:{self.scale!r}\n"

    def note(self) -> str:
        """What whoever uses the student should know."""
        what = ", ".join(f"{count} of {component}" for component, count in self.layers.items())
        ranks = ", ".join(map(str, self.ranks[:3])) + (", ..." if len(self.ranks) > 3 else "")
        left = f"; its part of {' and '.join(self.unused)} is not used: that is not there" if self.unused else ""
        return f"LoRA merged: {self.name}, scale {self.scale:g}, layers: {what}, rank {ranks}{left}"


def merge_loras(loras: Iterable[Lora], weights: Weights) -> tuple[Weights, tuple[Merged, ...]]:
    """Merge LoRAs, in their order, into the weights of a student's components.

    Args:
        loras: to merge.
        weights: of each component by diffusers' names; left as they are.

    Returns:
        The weights with those replaced that a LoRA changes, and what was merged.

    Raises:
        StudentError: one cannot be merged.
    """
    changes: dict[tuple[str, str], list[Change]] = collections.defaultdict(list)
    modules = {component: Modules(component, weights[component]) for component in COMPONENTS if component in weights}
    done = []
    for lora in loras:
        opened = open_lora(lora, COMPONENTS)
        fitted = _fitted(opened, modules)
        for key, change in fitted.changes:
            changes[key].append(change)
        done.append(_record(opened, fitted))
    result = {component: dict(tensors) for component, tensors in weights.items()}
    for (component, name), made in changes.items():
        result[component][name] = merged(weights[component][name], made)
    return result, tuple(done)


def _fitted(opened: LoraFile, modules: Mapping[str, Modules]) -> Fitted:
    """What a LoRA changes.

    Raises:
        StudentError: it is damaged, or does not fit.
    """
    layers, complaints = read_layers(opened.tensors)
    if complaints:
        raise StudentError(f"The LoRA {opened.file} cannot be merged.", _first(complaints), "copy or download the file again")
    fitted = fit(opened, layers, modules)
    if fitted.complaints:
        raise StudentError(
            f"{opened.file} is a LoRA of {fitted.of or 'another model or another size of it'}, and does not fit this student."
            if fitted.foreign
            else f"{opened.file} is a LoRA that does not fit this student.",
            _first(fitted.complaints),
            "give a LoRA of the model that the student was made of",
        )
    return fitted


def _first(complaints: Sequence[Complaint]) -> list[Complaint]:
    """Some of many alike, and how many more there are."""
    more = len(complaints) - _MANY
    if more <= 0:
        return list(complaints)
    return [*complaints[:_MANY], Complaint(f"{more} more", "are wrong likewise")]


def _record(opened: LoraFile, fitted: Fitted) -> Merged:
    path = opened.lora.path
    name = f"{path.resolve().name}/{opened.file.name}" if path.is_dir() else opened.file.name
    layers = {component: count for component in COMPONENTS if (count := fitted.layers[component])}
    return Merged(name, opened.lora.scale, opened.files, layers, tuple(sorted(fitted.ranks)), tuple(sorted(fitted.unused)))
