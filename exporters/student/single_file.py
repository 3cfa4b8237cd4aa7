"""Single-file checkpoints (``sd3.5_medium.safetensors``): a transformer, and what else is in the file, with the folder around it.

A single file holds no tokenizers, no scheduler and often no text encoders: these are read from the diffusers folder that
the file lies in. Configurations that the folder lacks are inferred from the tensors' shapes.
"""

from __future__ import annotations

from pathlib import Path

from exporters.errors import Complaint, StudentError
from exporters.student.assembly import ABSENT, assemble
from exporters.student.parts import (
    DEAD,
    ENCODERS,
    OTHER_VAE,
    TRANSFORMER,
    VAE,
    Part,
    is_bare,
    names_of_component,
    open_part,
    read_part,
)
from exporters.student.structure import COMPONENTS
from exporters.student.student import Student, StudentSource
from exporters.student.weights.adapters import adapter_tensors
from exporters.student.weights.checkpoint import WeightFile, open_weight_file
from exporters.student.weights.files import has_weight_files
from exporters.student.weights.recognise import FUSE, checkpoint_kind
from exporters.student.weights.templates import OPTIONAL_COMPONENTS

_DEAD_FOLDERS = ("first_stage_model.loss.", "vae.loss.", "model_sampling.", "denoiser.sigmas", "optimizer.")


def open_single_file(source: StudentSource) -> Student:
    """Open a checkpoint with the folder around it; optional components can be left out.

    Raises:
        StudentError: not an SD3 checkpoint, or something that it lacks is not in its folder.
    """
    path, folder = source.path, source.path.parent
    file = open_weight_file(path, "checkpoint")
    _check_is_sd3(path, file)
    names = _by_component(path, file)
    parts: dict[str, Part] = {}
    notes = [*file.wrapper_notes("checkpoint"), *_untaken(names.pop("", []))]
    errors = []
    for component, elsewhere in source.components:
        try:
            parts[component] = open_part(component, elsewhere, folder, source.variant)
        except StudentError as error:
            errors.append(error)
    for component, taken in names.items():
        if component in source.without or component in dict(source.components):
            continue
        told: list[str] = []
        try:
            config, weights = read_part(path, file, taken, component, folder, told)
            parts[component] = Part(config, weights, (path,), tuple(told))
        except StudentError as error:
            errors.append(error)
    there = {*names, *dict(source.components)}
    absent = [c for c in OPTIONAL_COMPONENTS if c not in there and (folder / c).is_dir() and not has_weight_files(folder / c)]
    components = [c for c in COMPONENTS if c in there or ((folder / c).is_dir() and c not in absent)]
    components = [c for c in components if c not in source.without]
    missing = [c for c in COMPONENTS if c not in components and c not in OPTIONAL_COMPONENTS]
    if missing:
        complaints = [Complaint(str(path), f"holds no {c}, and neither does its folder", f"{folder / c}") for c in missing]
        remedy = "put the file into the folder of a diffusers SD3 pipeline, or give such a folder and the file with --transformer"
        errors.append(StudentError("", complaints, remedy))
    if errors:
        raise StudentError.of(f"{path} cannot be used", errors)
    notes += [ABSENT.format(c) for c in absent if c not in source.without]
    return assemble(source, folder, components, notes, parts)


def _check_is_sd3(path: Path, file: WeightFile) -> None:
    """Complain of a file that holds something else, or a LoRA among its weights."""
    count = len(file.names)
    if lora := adapter_tensors(file.names):
        alone = 2 * len(lora) >= count
        what = "is a LoRA, not a student" if alone else "holds weights with a LoRA attached"
        complaint = Complaint(str(path), "tensors of a LoRA", "weights", f"{len(lora)} of {count}, e.g. {min(lora)}")
        raise StudentError(f"{path} {what}.", [complaint], FUSE, what)
    kind = checkpoint_kind(file.names)
    if kind is None and names_of_component("transformer", file):
        return
    complaint = Complaint(
        str(path),
        "not an original Stable Diffusion 3 checkpoint: no MMDiT in it",
        f"tensors named {TRANSFORMER}joint_blocks.*, joint_blocks.* or transformer_blocks.*",
        f"{count} others",
    )
    if kind is not None:
        raise StudentError(f"{path} {kind.what}.", [complaint], kind.remedy, kind.what)
    remedy = "give an original Stable Diffusion 3 checkpoint, or the folder of a student in diffusers layout"
    raise StudentError(f"{path} is not an original Stable Diffusion 3 checkpoint.", [complaint], remedy)


def _by_component(path: Path, file: WeightFile) -> dict[str, list[str]]:
    """Names of tensors by the component that takes them; those that none takes are under the empty name."""
    prefixes = {"transformer": TRANSFORMER, "vae": VAE, **ENCODERS}
    bare = is_bare("transformer", file.names)
    by_component: dict[str, list[str]] = {}
    for name in file.names:
        if name.endswith(DEAD) or name.startswith(_DEAD_FOLDERS):
            continue
        component = next((c for c, prefix in prefixes.items() if name.startswith(prefix)), "transformer" if bare else "")
        component = "vae" if name.startswith(OTHER_VAE) else component
        by_component.setdefault(component, []).append(name)
    both = [prefix for prefix in (VAE, OTHER_VAE) if any(name.startswith(prefix) for name in by_component.get("vae", []))]
    if len(both) > 1:
        complaint = Complaint(str(path), "holds two VAEs", "one", " and ".join(f"{prefix}*" for prefix in both))
        raise StudentError(f"{path} holds two VAEs.", [complaint], "remove one of them from the file", "holds two VAEs")
    return by_component


def _untaken(names: list[str]) -> list[str]:
    """What to say of tensors that no component of Stable Diffusion 3 has."""
    if not names:
        return []
    tops = sorted({".".join(name.split(".")[:2]) for name in names})
    more = f" and {len(tops) - 5} more" if len(tops) > 5 else ""
    return [f"{len(names)} tensors of the file belong to no component and are not read: {', '.join(tops[:5])}{more}"]
