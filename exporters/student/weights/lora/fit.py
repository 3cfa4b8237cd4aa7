"""What a LoRA's layers change in a student, module by module; or how they do not fit it."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from exporters.errors import Complaint, StudentError
from exporters.student.weights.lora.file import LoraFile
from exporters.student.weights.lora.layers import Layer
from exporters.student.weights.lora.merge import Addend, Change, Product
from exporters.student.weights.lora.modules import COMPONENTS, Modules, Place, other_model, place_of
from exporters.student.weights.lora.original import Piece
from exporters.student.weights.lora.scaling import Scaling
from exporters.student.weights.templates import OPTIONAL_COMPONENTS

_Found = tuple[Layer, Place, tuple[Piece, ...]]


@dataclass
class Fitted:
    """What was found out.

    Attributes:
        changes: to tensors, by component and name.
        layers: that have a place, by component.
        ranks: of them.
        unused: components that are not there, and whose layers are left out.
        complaints: about layers that have no place.
        foreign: whether the LoRA is of another model, or of another size of it.
        of: which, if that can be told.
    """

    changes: list[tuple[tuple[str, str], Change]] = field(default_factory=list)
    layers: collections.Counter[str] = field(default_factory=collections.Counter)
    ranks: set[int] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    complaints: list[Complaint] = field(default_factory=list)
    foreign: bool = False
    of: str = ""


def fit(opened: LoraFile, layers: Sequence[Layer], modules: Mapping[str, Modules]) -> Fitted:
    """Find the place of each layer.

    Args:
        opened: the LoRA.
        layers: its.
        modules: of each component that is there.

    Raises:
        StudentError: it does not say which of two text encoders it is of.
    """
    places = [place_of(layer.module) for layer in layers]
    guessed = _component(opened, layers, places, modules)
    fitted = Fitted()
    found: list[_Found] = []
    lost: list[Place] = []
    for layer, said in zip(layers, places, strict=True):
        place = said if said.component else Place(guessed, said.module, said.flat)
        if place.component not in modules:
            fitted.unused.add(place.component)
        elif pieces := modules[place.component].find(place):
            found.append((layer, place, pieces))
        else:
            lost.append(place)
    if unknown := fitted.unused - set(OPTIONAL_COMPONENTS):
        fitted.complaints += [Complaint(component, "is not there") for component in sorted(unknown)]
    misfits = _misfits(found, modules)
    fitted.of = "" if found else other_model([layer.module for layer in layers])
    fitted.foreign = bool(misfits or fitted.of)
    fitted.complaints += misfits + _unknown(lost, modules, suggest=not fitted.foreign)
    if not fitted.complaints:
        for layer, place, pieces in found:
            _change(fitted, opened, layer, place, pieces, modules[place.component])
    if not fitted.complaints and not fitted.layers:
        only = " and ".join(sorted(fitted.unused))
        fitted.complaints.append(Complaint(str(opened.file), f"changes {only} alone, which is left out or not there"))
    return fitted


def _component(opened: LoraFile, layers: Sequence[Layer], places: Sequence[Place], modules: Mapping[str, Modules]) -> str:
    """The component of layers whose names say none: that of PEFT's folder, else the one that has modules of such names.

    Raises:
        StudentError: there are two.
    """
    bare = [(layer, place) for layer, place in zip(layers, places, strict=True) if not place.component]
    if not bare:
        return ""
    if (folder := opened.file.resolve().parent.name) in modules and opened.config is not None:
        return folder
    counts = {name: sum(1 for _, place in bare if its.find(place)) for name, its in modules.items()}
    best = [name for name, count in counts.items() if count and count == max(counts.values())]
    if len(best) > 1:  # CLIP-L and CLIP-G have the same names
        best = [name for name in best if all(_fits(layer, modules[name].find(p), modules[name]) for layer, p in bare)] or best[:1]
    if len(best) > 1:
        complaint = Complaint(str(opened.file), "names modules that several have", "one of them", " and ".join(best))
        remedy = f"name its folder {best[0]} or {best[1]}, or write that before its tensors' names"
        raise StudentError(f"{opened.file} does not say what it is a LoRA of.", [complaint], remedy)
    return best[0] if best else COMPONENTS[0]


def _fits(layer: Layer, pieces: tuple[Piece, ...], modules: Modules) -> bool:
    """Whether halves have the outputs and inputs of a module."""
    if not pieces:
        return False
    weight = modules.weight(pieces[0])
    conv = len(layer.down.shape) > 2 and len(weight.shape) > 2
    inputs = layer.down.shape[1:] == weight.shape[1:] if conv else math.prod(layer.down.shape[1:]) == math.prod(weight.shape[1:])
    return inputs and layer.up.shape[0] == _outputs(pieces)


def _outputs(pieces: tuple[Piece, ...]) -> int:
    return sum(end - start for piece in pieces for start, end in piece.rows)


def _misfits(found: Sequence[_Found], modules: Mapping[str, Modules]) -> list[Complaint]:
    """One complaint a component: where one layer has another size, most have."""
    complaints = []
    for component, its in modules.items():
        here = [(layer, pieces) for layer, place, pieces in found if place.component == component]
        wrong = [(layer, pieces) for layer, pieces in here if not _fits(layer, pieces, its)]
        if wrong:
            layer, pieces = wrong[0]
            expected = [_outputs(pieces), *its.weight(pieces[0]).shape[1:]]
            got = [layer.up.shape[0], *layer.down.shape[1:]]
            what = f"{len(wrong)} of {len(here)} layers have other sizes, e.g. {layer.module}"
            complaints.append(Complaint(component, what, str(expected), str(got)))
    return complaints


def _unknown(lost: Sequence[Place], modules: Mapping[str, Modules], suggest: bool) -> list[Complaint]:
    """Layers that the student has no module for, with the names that are most like theirs."""
    if not suggest and lost:
        names = ", ".join(place.module for place in lost[:3])
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        return [Complaint(f"{names}{more}", "are no modules of this student")]
    complaints = []
    for i, place in enumerate(lost):
        nearest = modules[place.component].nearest(place) if i < 5 else ""  # more are not told
        like = f"something like {nearest}" if nearest else None
        complaints.append(Complaint(f"{place.component}: {place.module}", "no such module", like))
    return complaints


def _change(fitted: Fitted, opened: LoraFile, layer: Layer, place: Place, pieces: tuple[Piece, ...], modules: Modules) -> None:
    """Note what a layer does to each of its pieces."""
    scaling = opened.scaling(place.component)
    fitted.complaints += _check_layer(layer, place, scaling, pieces, modules)
    factor = opened.lora.scale * scaling.of(place.module, layer.rank, layer.alpha)
    fitted.layers[place.component] += 1
    fitted.ranks.add(layer.rank)
    for piece in pieces:
        product = Product(layer.down, layer.up, piece.rows, factor, layer.magnitude)
        fitted.changes.append(((place.component, f"{piece.module}.weight"), product))
        if layer.bias is not None:
            fitted.changes.append(((place.component, f"{piece.module}.bias"), Addend(layer.bias, piece.rows, factor)))


def _check_layer(
    layer: Layer, place: Place, scaling: Scaling, pieces: tuple[Piece, ...], modules: Modules
) -> Iterator[Complaint]:
    where, outputs = f"{place.component}: {place.module}", _outputs(pieces)
    expected = scaling.expected_rank(place.module)
    if expected is not None and expected != layer.rank:
        yield Complaint(where, f"has another rank than {scaling.where} says", str(expected), str(layer.rank))
    if scaling.dora and layer.magnitude is None:
        yield Complaint(where, f"lacks the magnitudes of a DoRA, which {scaling.where} says it is", "lora_magnitude_vector")
    if (lengths := layer.magnitude) is not None:
        by_input = lengths.name.endswith("dora_scale") and len(lengths.shape) > 1 and lengths.shape[0] == 1 < outputs
        if by_input or lengths.elements != outputs:
            what = "a DoRA with lengths of columns is not merged" if by_input else "DoRA's magnitudes have another size"
            yield Complaint(where, what, f"[{outputs}] lengths of rows", str(list(lengths.shape)))
    if layer.bias is not None:
        biases = [modules.weights.get(f"{piece.module}.bias") for piece in pieces]
        if layer.bias.elements != outputs or None in biases:
            got = str(list(layer.bias.shape)) if None not in biases else "a module without bias"
            yield Complaint(where, "its bias does not fit", f"[{outputs}]", got)
