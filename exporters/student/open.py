"""Open a student: a folder in diffusers' layout, or an original single-file checkpoint that lies in one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from exporters.errors import Complaint, StudentError
from exporters.student.assembly import ABSENT, assemble
from exporters.student.defaults import read_json
from exporters.student.hub import located
from exporters.student.parts import Part, open_part
from exporters.student.single_file import open_single_file
from exporters.student.structure import COMPONENTS, SID, check_index, is_listed
from exporters.student.student import BUILTIN_STUDENT, Student, StudentSource
from exporters.student.weights.files import has_weight_files
from exporters.student.weights.gguf_file import is_gguf
from exporters.student.weights.lora.source import Lora, as_loras
from exporters.student.weights.recognise import Kind, file_kind, path_kind
from exporters.student.weights.templates import OPTIONAL_COMPONENTS

SID_STEPS = 4


def open_student(
    path: Path | str = BUILTIN_STUDENT,
    variant: str | None = None,
    without: Collection[str] = (),
    ignore_lora: bool = False,
    lora: Iterable[Lora | Path | str] = (),
    components: Mapping[str, Path | str] = MappingProxyType({}),
) -> Student:
    """Open a student and check it against its own configuration.

    Args:
        path: a folder in diffusers layout, a single-file checkpoint inside one, or ``owner/name[@revision]`` in a hub's cache.
        variant: which variant of the weight files to take (``fp16`` for ``model.fp16.safetensors``).
        without: optional components that are not opened even if they are there.
        ignore_lora: draw without a LoRA that lies beside the weights; else such a student is refused.
        lora: LoRAs to merge into the weights, in their order: ``FILE`` or ``FILE:SCALE`` as text, a path, or both as data.
        components: from elsewhere, by name (``transformer``, ``vae``, ``text_encoder_3``, ...): a folder of its own, a pipeline's
            folder that holds one, or a single file.

    Raises:
        StudentError: every complaint at once, each with component, tensor, expected and got.
    """
    from_elsewhere = as_components(components)
    return open_source(StudentSource(Path(path), variant, ignore_lora, tuple(without), as_loras(lora), from_elsewhere))


def open_source(source: StudentSource) -> Student:
    """Open a student and check it against its own configuration.

    Raises:
        StudentError: every complaint at once, each with component, tensor, expected and got.
    """
    source = replace(
        source,
        path=located(source.path),
        lora=tuple(replace(one, path=located(one.path)) for one in source.lora),
        components=tuple((name, located(place)) for name, place in source.components),
    )
    path = source.path
    if path.exists() and not path.is_dir():
        _check_single_file(path)
        return open_single_file(source)
    _check_folder(path)
    index = read_json(path / "model_index.json")
    check_index(path, index)
    given = _from_elsewhere(source)
    listed = [c for c in COMPONENTS if (is_listed(index, c) or c in given) and c not in source.without]
    absent = [c for c in listed if c in OPTIONAL_COMPONENTS and c not in given and not has_weight_files(path / c)]
    classes = {component: index[component][1] for component in listed if component not in given}
    wanted, notes = [c for c in listed if c not in absent], [ABSENT.format(c) for c in absent]
    student = assemble(source, path, wanted, notes, given, classes)
    return _stepping_as_sid(student) if index["_class_name"] == SID else student


def as_components(components: Mapping[str, Path | str]) -> tuple[tuple[str, Path], ...]:
    """Components from elsewhere, in their order in a student.

    Raises:
        StudentError: there is no such component.
    """
    if strangers := sorted(components.keys() - set(COMPONENTS)):
        complaint = Complaint("components", "unknown", ", ".join(COMPONENTS), ", ".join(strangers))
        raise StudentError("A student has no such component.", [complaint])
    return tuple((name, Path(components[name])) for name in COMPONENTS if name in components)


def _from_elsewhere(source: StudentSource) -> dict[str, Part]:
    """The components that are not in the folder, each read.

    Raises:
        StudentError: what is wrong with any of them.
    """
    given, errors = {}, []
    for component, place in source.components:
        if component in source.without:
            continue
        try:
            given[component] = open_part(component, place, source.path, source.variant)
        except StudentError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else StudentError.of("Components from elsewhere cannot be used", errors)
    return given


def _stepping_as_sid(student: Student) -> Student:
    """With that pipeline's steps where ``student.json`` says nothing: evenly spaced levels without a shift, noise drawn anew."""
    own = student.defaults
    if own.sigmas is None and own.sigmas_after_shift is None:
        steps = own.steps or SID_STEPS
        own = replace(own, steps=steps, sigmas_after_shift=tuple(1 - i / steps for i in range(steps)))
    own = own if own.sampler is not None else replace(own, sampler="renoise")
    note = f"the pipeline is {SID}: it draws noise anew in every step (sampler renoise), at noise levels without a shift"
    return replace(student, defaults=own, notes=(*student.notes, note))


def _check_folder(path: Path) -> None:
    if (path / "model_index.json").is_file():
        return
    kind = path_kind(path)
    where = (
        []
        if not path.exists()
        else [Complaint(str(path / "model_index.json"), "no such file", "a folder in diffusers StableDiffusion3Pipeline layout")]
    )
    if kind is not None:
        raise StudentError(f"{path} {kind.what}.", where, kind.remedy, kind.what)
    remedy = "save the pipeline with save_pretrained, or give the single .safetensors file itself"
    raise StudentError(f"{path} is not a student.", where, remedy)


def _check_single_file(path: Path) -> None:
    """Complain of what is no safetensors file; a file that is one by its name is looked at when it is opened."""
    if path.suffix == ".safetensors" or is_gguf(path):
        return
    kind = file_kind(path) if path.is_file() else Kind("is not a file", "give a single .safetensors file")
    kind = kind or Kind("is not a safetensors file", "convert it to safetensors where you trust it")
    raise StudentError(f"{path} {kind.what}.", remedy=kind.remedy, kind=kind.what)
