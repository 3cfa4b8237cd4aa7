"""Which files of a component's folder hold its weights: single or sharded safetensors, with or without a variant.

File names follow diffusers and transformers: ``STEM.safetensors``, ``STEM.VARIANT.safetensors``,
``STEM-00001-of-00002.safetensors`` with ``STEM.safetensors.index.json``, and
``STEM.VARIANT-00001-of-00002.safetensors`` (before 2024 ``STEM-00001-of-00002.VARIANT.safetensors``) with
``STEM.safetensors.index.VARIANT.json`` (https://huggingface.co/docs/diffusers/using-diffusers/other-formats).
Two sets of weights for one variant are nobody's to choose between: one of them is stale. Pickle files are refused unopened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exporters.errors import Complaint, StudentError
from exporters.student.weights.adapters import is_adapter
from exporters.student.weights.recognise import AGAIN, CHECKPOINT, GGUF, PICKLE_SUFFIXES, export_kind, file_kind

STEMS = ("diffusion_pytorch_model", "model")
LONGEST_NAME = 255  # bytes, of every file system that matters
_SUFFIX = ".safetensors"
_STEM = rf"(?:{'|'.join(STEMS)})"
_SINGLE = re.compile(rf"{_STEM}(?:\.([^.]+))?\.safetensors")
_INDEX = re.compile(rf"{_STEM}(?:\.([^.]+))?\.safetensors\.index(?:\.([^.]+))?\.json")
_SHARD = re.compile(rf"{_STEM}(?:\.([^.]+))?-\d{{5}}-of-\d{{5}}(?:\.([^.]+))?\.safetensors")


@dataclass
class _Listing:
    """What a folder holds, by variant (the plain files' is the empty string).

    Attributes:
        sets: single files and indices: each stands for a whole set of weights.
        shards: pieces of sets.
        others: safetensors files that have none of these names.
    """

    sets: dict[str, list[Path]] = field(default_factory=dict)
    shards: dict[str, list[Path]] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)


def choose_weight_files(folder: Path, component: str, variant: str | None) -> tuple[list[Path], list[str]]:
    """The files of one set of weights, and what to say of files that are not read.

    Raises:
        StudentError: there is no set, there are several, or one that is not whole.
    """
    listing = _look(folder)
    if not listing.sets:
        raise _no_weights(folder, component, listing)
    chosen = _choose(folder, component, listing.sets, variant)
    sets = listing.sets[chosen]
    if len(sets) > 1:
        raise _several(folder, component, sets, len(listing.sets) > 1)
    files = _shards(folder, sets[0], component) if sets[0].suffix == ".json" else sets
    return files, _unread(component, sets[0], files, listing, chosen)


def _several(folder: Path, component: str, sets: Sequence[Path], other_variants: bool) -> StudentError:
    """Two sets of weights, and what is wrong with the index of one besides."""
    names = " and ".join(file.name for file in sets)
    what = "holds more than one set of weights, and one of them may be stale"
    complaints = [Complaint(str(folder), what, "one", names)]
    for index in (file for file in sets if file.suffix == ".json"):
        try:
            _shards(folder, index, component)
        except StudentError as error:
            complaints += error.complaints
    remedy = "remove the one that is stale (with an index, its shards too)"
    remedy += ", or choose another variant with --variant" if other_variants else ""
    kind = f"{component} has two sets of weights, {names}"
    return StudentError(f"{component} has several sets of weights.", complaints, remedy, kind)


def has_weight_files(folder: Path) -> bool:
    """Whether a folder holds weights of any kind, whole or not."""
    kinds = (_SUFFIX, ".gguf", *PICKLE_SUFFIXES)
    return folder.is_dir() and any(file.suffix in kinds or f"{_SUFFIX}.index" in file.name for file in folder.iterdir())


def _look(folder: Path) -> _Listing:
    listing = _Listing()
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _INDEX.fullmatch(file.name):
            listing.sets.setdefault(match[1] or match[2] or "", []).append(file)
        elif match := _SHARD.fullmatch(file.name):
            listing.shards.setdefault(match[1] or match[2] or "", []).append(file)
        elif file.suffix == _SUFFIX and not is_adapter(file):
            if match := _SINGLE.fullmatch(file.name):
                listing.sets.setdefault(match[1] or "", []).append(file)
            else:
                listing.others.append(file)
    return listing


def _choose(folder: Path, component: str, sets: dict[str, list[Path]], variant: str | None) -> str:
    if variant is None and "" not in sets and len(sets) > 1:
        raise StudentError(
            f"{component} comes in several variants.",
            [Complaint(str(folder), "several variants", got=", ".join(sorted(sets)))],
            "choose one with --variant",
        )
    # A pipeline may hold a variant for some components only: the others are taken plain, as diffusers does.
    chosen = variant if variant in sets else ("" if "" in sets else next(iter(sets)))
    if variant is not None and chosen not in (variant, ""):
        raise StudentError(
            f"{component} has no variant {variant!r}.",
            [Complaint(str(folder), "variant not found", variant, ", ".join(sorted(sets)))],
            "choose one of those with --variant",
        )
    return chosen


def _no_weights(folder: Path, component: str, listing: _Listing) -> StudentError:
    if shards := [file for files in listing.shards.values() for file in files]:
        names = _names(shards)
        return StudentError(
            f"The shards of {component} have no index.",
            [Complaint(str(folder), "shards without an index", f"{shards[0].name.split('-0')[0]}{_SUFFIX}.index.json", names)],
            "download the index (.safetensors.index.json) too, or save the pipeline again with save_pretrained",
            f"{component} has shards without their index",
        )
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    exported = {file: kind for file in files if (kind := export_kind(file.name))}
    if pickles := [file.name for file in files if file.suffix in PICKLE_SUFFIXES and file not in exported]:
        return StudentError(
            f"{component} has only pickle checkpoints, which can run any code when opened; they were not opened.",
            [Complaint(f"{component}: {folder / name}", "pickle", "safetensors") for name in pickles],
            "convert them to safetensors where you trust them (pipeline.save_pretrained(..., safe_serialization=True))",
            f"{component} is a pickle checkpoint",
        )
    if gguf := [file for file in files if file.suffix == ".gguf"]:
        complaint = Complaint(str(gguf[0]), "is a GGUF file", "safetensors")
        return StudentError(f"{component} is a GGUF file.", [complaint], GGUF, f"{component} is a GGUF file")
    if exported:
        kind = min(exported.values())
        complaint = Complaint(str(folder), f"holds {kind}", "safetensors", _names([*exported]))
        return StudentError(f"{component} is {kind}.", [complaint], CHECKPOINT, f"{component} is {kind}")
    wanted = " or ".join(f"{stem}{_SUFFIX}" for stem in STEMS)
    got = _names(listing.others) or None
    return StudentError(
        f"{component} has no weights.",
        [Complaint(str(folder), "no weight file", wanted, got)],
        "rename it if it holds the weights" if got else "check that the download is complete",
    )


def _unread(component: str, chosen: Path, files: Sequence[Path], listing: _Listing, variant: str) -> list[str]:
    """Weights that lie about and are not part of the set: what an older save has left, or what someone has put there."""
    shards = [file for file in listing.shards.get(variant, []) if file not in files]
    notes = []
    if shards:
        why = "its index does not name them" if chosen.suffix == ".json" else f"{chosen.name} is"
        notes.append(f"{component}: shards that are not read ({why}): {_names(shards)}")
    if listing.others:
        notes.append(f"{component}: files that are not read ({chosen.name} is): {_names(listing.others)}")
    return notes


def _names(files: Sequence[Path]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(file.name for file in files[:3]) + more


def _shards(folder: Path, index: Path, component: str) -> list[Path]:
    try:
        if (kind := file_kind(index)) is not None:
            raise StudentError("", [Complaint(str(index), kind.what)], kind.remedy, f"{index.name} of {component} {kind.what}")
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StudentError(
            f"The shard index of {component} cannot be read.",
            [Complaint(str(index), f"damaged: {error!r}", 'JSON with a "weight_map"')],
            AGAIN,
        ) from error
    complaints = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
            complaints.append(Complaint(str(index), "names a file outside its folder", "a plain file name", repr(name)))
        elif not (folder / name).is_file():
            complaints.append(Complaint(str(folder / name), "shard is missing"))
    if complaints:
        raise StudentError(f"The shards of {component} are incomplete.", complaints, "copy or download the files again")
    return [folder / name for name in names]
