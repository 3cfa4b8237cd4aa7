"""Weight files of one component: single or sharded safetensors, with or without a variant, memory-mapped.

File names follow diffusers and transformers: ``STEM.safetensors``, ``STEM.VARIANT.safetensors``,
``STEM-00001-of-00002.safetensors`` with ``STEM.safetensors.index.json``, and
``STEM.VARIANT-00001-of-00002.safetensors`` with ``STEM.safetensors.index.VARIANT.json``
(https://huggingface.co/docs/diffusers/using-diffusers/other-formats). Pickle files are refused unopened.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from exporters.errors import Complaint, StudentError
from exporters.weights import Weight

STEMS = ("diffusion_pytorch_model", "model")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
}
LONGEST_NAME = 255  # bytes, of every file system that matters
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def open_component(folder: Path, component: str, variant: str | None = None) -> tuple[dict[str, Weight], list[Path]]:
    """Memory-map the weights of the component in ``folder``.

    Args:
        folder: the component's folder, for example ``student/transformer``.
        component: its name, for complaints.
        variant: the variant to take, for example ``fp16``; by default the plain files, or the only variant there is.

    Returns:
        The weights by name, and the files that they lie in.

    Raises:
        StudentError: no usable file, a damaged file, a shard that is missing, or a path out of the folder.
    """
    files = _weight_files(folder, component, variant)
    weights: dict[str, Weight] = {}
    complaints: list[Complaint] = []
    for file in files:
        try:
            found = open_safetensors(file, component)
        except StudentError as error:
            complaints.extend(error.complaints)
            continue
        complaints += [
            Complaint(f"{component}: {name}", "is stored twice", got=f"again in {file.name}")
            for name in found.keys() & weights.keys()
        ]
        weights.update(found)
    if complaints:
        raise StudentError(f"The weights of {component} cannot be read.", complaints)
    return weights, files


def open_safetensors(file: Path, component: str) -> dict[str, Weight]:
    """Memory-map every tensor of one safetensors file; nothing is read but its header.

    Raises:
        StudentError: the file is truncated or is not a safetensors file, or a tensor has a type that is not supported.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():  # a pipe would be waited for, a device read for ever
        complaint = Complaint(f"{component}: {file}", "is not a file")
        raise StudentError("A weight file cannot be read.", [complaint], "copy or download the file again")
    try:
        # The torch framework hands out views of the mapping, numpy's hands out copies (safetensors 0.8).
        handle: Any = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise StudentError(
            "A weight file cannot be read.",
            [Complaint(f"{component}: {file}", f"truncated or not a safetensors file: {error}")],
            "copy or download the file again",
        ) from error
    weights, complaints = {}, []
    for name in handle.keys():  # noqa: SIM118  (a safe_open handle is not a mapping)
        header = handle.get_slice(name)
        kind = header.get_dtype()
        if kind not in _DTYPES:
            complaints.append(Complaint(f"{component}: {name}", "stored in an unsupported type", " or ".join(_DTYPES), kind))
            continue
        weights[name] = Weight(
            tuple(header.get_shape()),
            _DTYPES[kind],
            _loader(handle, name),
            f"{component}: {name} in {file.name}",
            component,
            name,
        )
    if complaints:
        raise StudentError(f"{file} cannot be used.", complaints, "convert the checkpoint to fp32, fp16 or bf16")
    return weights


def _loader(handle: Any, name: str) -> Any:
    def load() -> np.ndarray:
        import torch

        tensor = handle.get_tensor(name)
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
        return tensor.numpy()  # type: ignore[no-any-return]

    return load


def _weight_files(folder: Path, component: str, variant: str | None) -> list[Path]:
    by_variant = _variants(folder, component)
    if not by_variant:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES) if folder.is_dir() else []
        if pickles:
            raise StudentError(
                f"{component} has only pickle checkpoints, which can run any code when opened; they were not opened.",
                [Complaint(f"{component}: {folder / name}", "pickle", "safetensors") for name in pickles],
                "convert them to safetensors where you trust them (pipeline.save_pretrained(..., safe_serialization=True))",
            )
        raise StudentError(
            f"{component} has no weights.",
            [Complaint(str(folder), "no weight file", " or ".join(f"{stem}.safetensors" for stem in STEMS))],
            "check that the download is complete",
        )
    if variant is None and "" not in by_variant and len(by_variant) > 1:
        raise StudentError(
            f"{component} comes in several variants.",
            [Complaint(str(folder), "several variants", got=", ".join(sorted(by_variant)))],
            "choose one with --variant",
        )
    # A pipeline may hold a variant for some components only: the others are taken plain, as diffusers does.
    chosen = variant if variant in by_variant else ("" if "" in by_variant else next(iter(by_variant)))
    if variant is not None and chosen not in (variant, ""):
        raise StudentError(
            f"{component} has no variant {variant!r}.",
            [Complaint(str(folder), "variant not found", variant, ", ".join(sorted(by_variant)))],
            "choose one of those with --variant",
        )
    return by_variant[chosen]


def _variants(folder: Path, component: str) -> dict[str, list[Path]]:
    """Every complete set of weight files in the folder, by variant; the plain set's variant is the empty string."""
    found: dict[str, list[Path]] = {}
    for stem in STEMS:
        for index in sorted(folder.glob(f"{stem}.safetensors.index*.json")):
            variant = index.name.removeprefix(f"{stem}.safetensors.index").removesuffix("json").strip(".")
            found.setdefault(variant, _shards(folder, index, component))
        for file in sorted(folder.glob(f"{stem}*.safetensors")):
            middle = file.name.removeprefix(stem).removesuffix(".safetensors")
            if _SHARD.search(middle) or (middle and not middle.startswith(".")):
                continue
            found.setdefault(middle.strip("."), [file])
        if found:
            return found
    return found


def _shards(folder: Path, index: Path, component: str) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StudentError(
            f"The shard index of {component} cannot be read.",
            [Complaint(str(index), f"damaged: {error!r}", 'JSON with a "weight_map"')],
            "copy or download the file again",
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
