"""A student put together of its parts: components from the folder, or given by a single file; every complaint at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exporters.errors import Complaint, StudentError
from exporters.student.configs import check_class, check_config, check_values
from exporters.student.defaults import StudentDefaults, defaults_file, read_defaults, read_json
from exporters.student.guidance import card_of, guidance_note, names_of
from exporters.student.parts import Part
from exporters.student.scheduler import read_scheduler
from exporters.student.structure import check_fit, check_tokenizer
from exporters.student.student import TOKENIZERS, Student, StudentSource, stamp
from exporters.student.weights import adapters
from exporters.student.weights.checkpoint import Opened, open_component, quantized
from exporters.student.weights.lora.apply import merge_loras
from exporters.student.weights.recognise import quantization_of
from exporters.student.weights.templates import check_weights, resolve_config
from exporters.student.weights.weight import Weight
from quantization.errors import LONGEST_HEADLINE, shortened

ABSENT = "{} (T5) is listed and its weights are not there: the student is one without it"


class _Parts:
    """What has been read so far, and what is wrong with it."""

    def __init__(self, source: StudentSource, folder: Path, given: Mapping[str, Part], listed: Mapping[str, str]) -> None:
        self.source, self.folder, self.given, self.listed = source, folder, given, listed
        self.configs: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, dict[str, Any]] = {}
        self.weights: dict[str, dict[str, Weight]] = {}
        self.files: list[Path] = []
        self.notes: list[str] = []
        self.errors: list[StudentError] = []

    def complain(self, complaints: Sequence[Complaint], remedy: str = "") -> None:
        if complaints:
            self.errors.append(StudentError("", complaints, remedy))

    def read(self, component: str) -> None:
        """Read and check a component."""
        try:
            if (part := self.given.get(component)) is not None:
                self.configs[component], self.weights[component] = dict(part.config), part.weights
                self.files += [file for file in part.files if file.suffix != ".json" and file not in self.files]
                self.notes += part.notes
            else:
                opened = self._open(component)
                self.weights[component] = opened.weights
                self.files += opened.files
                self.notes += opened.notes
            self.stored[component] = self.configs[component]
            listed = "" if component in self.given else self.listed.get(component, "")
            self.complain(_check_component(component, self.configs, self.weights, listed))
            if component in TOKENIZERS:
                check_tokenizer(self.folder / TOKENIZERS[component])
        except StudentError as error:
            self.errors.append(
                error if error.complaints else StudentError("", [Complaint(component, error.headline)], error.remedy)
            )

    def _open(self, component: str) -> Opened:
        folder = self.folder / component
        config = self.configs[component] = read_json(folder / "config.json")
        if tool := quantization_of(config):
            raise quantized(component, str(folder / "config.json"), tool)
        config.pop("quantization_config", None)  # of LLM.int8: what is read is floating point again
        return open_component(folder, component, self.source.variant)

    def read_rest(self) -> StudentDefaults:
        """Scheduler and student.json."""
        beside: dict[str, Any] = {}
        try:
            stored = read_json(self.folder / "scheduler" / "scheduler_config.json")
            self.configs["scheduler"], beside, notes = read_scheduler(stored)
            self.notes += notes
        except StudentError as error:
            self.errors.append(error)
        try:
            own = read_defaults(defaults_file(self.folder, self.source.variant))
            return replace(own, **{key: value for key, value in beside.items() if getattr(own, key) is None})
        except StudentError as error:
            self.errors.append(error)
        return StudentDefaults()


def _is_there(variant: str, folder: Path, components: Sequence[str], files: Iterable[Path]) -> bool:
    """Whether weight files are of a variant, among those that were read and those that could not be."""
    unread = (file for component in components for file in (folder / component).glob("*.safetensors"))
    return any(f".{variant}" in file.name for file in itertools.chain(files, unread))


def assemble(
    source: StudentSource,
    folder: Path,
    components: Sequence[str],
    notes: Sequence[str] = (),
    given: Mapping[str, Part] = MappingProxyType({}),
    listed: Mapping[str, str] = MappingProxyType({}),
) -> Student:
    """Read the components from ``folder`` but those that are ``given``, check all, and make the student.

    Args:
        source: what was asked for.
        folder: with configurations, tokenizers, scheduler and licence.
        components: to read.
        notes: what to say already.
        given: components that are not in the folder: of a single file, or from elsewhere.
        listed: the classes of the components that ``model_index.json`` lists.

    Raises:
        StudentError: every complaint at once.
    """
    parts = _Parts(source, folder, given, listed)
    for component in components:
        parts.read(component)
    variant = source.variant
    if variant is not None and parts.files and not _is_there(variant, folder, components, parts.files):
        parts.complain([Complaint("--variant", "no component has it", "the variant of some weight files", variant)])
    defaults = parts.read_rest()
    beside = tuple(file for file in adapters.find_adapters(folder, source.without) if file != source.path)
    adapter_files = adapters.not_given(beside, [lora.path for lora in source.lora])
    if adapter_files and not source.ignore_lora:
        parts.errors.append(adapters.refusal(folder, adapter_files))
    if parts.errors:
        raise StudentError.of(f"{source.path} is not a usable student", parts.errors)
    check_fit(source.path, parts.configs)
    weights, loras = merge_loras(source.lora, parts.weights)
    said = [*notes, *parts.notes, *(lora.note() for lora in loras)]
    said += [adapters.note(folder, adapter_files)] if adapter_files else []
    said += [] if source.path.is_file() else _loose_notes(folder, beside)
    said += [f"{component} is from elsewhere: {path}" for component, path in source.components]
    student = Student(
        source.path,
        folder,
        parts.configs,
        weights,
        tuple(parts.files),
        defaults,
        notes=_printable(said),
        guidance_note=_guidance(source.path, folder, parts, defaults),
        adapters=adapter_files,
        stored_configs=parts.stored,
        variant=variant,
        loras=loras,
        elsewhere={component: given[component].files for component, _ in source.components if component in given},
    )
    return replace(student, stamps={file: stamp(file) for file in student.files()})


def _printable(notes: Sequence[str]) -> tuple[str, ...]:
    """What foreign files say, such as names of tensors, must neither fill a screen nor drive it."""
    return tuple(shortened(note, LONGEST_HEADLINE) for note in notes)


def _loose_notes(folder: Path, adapter_files: Sequence[Path]) -> list[str]:
    """Checkpoints beside complete component folders, as many repositories have them: the folders are read."""
    loose = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".gguf", ".ckpt") and f not in adapter_files]
    if not loose:
        return []
    names = ", ".join(file.name for file in loose[:3]) + (f" and {len(loose) - 3} more" if len(loose) > 3 else "")
    return [f"not read, the component folders are: {names} (give a single .safetensors file itself to use it)"]


def _guidance(path: Path, folder: Path, parts: _Parts, defaults: StudentDefaults) -> str:
    named = [str(read_json(file).get("_name_or_path", "")) for file in (folder / "model_index.json",) if file.is_file()]
    named.append(str(parts.configs["transformer"].get("_name_or_path", "")))
    # A LoRA may be what distils it; Hyper-SD's come in two kinds, of which one is said to be for CFG.
    named += [name for lora in parts.source.lora for name in names_of(lora.path) if "cfg" not in name.lower()]
    # A scheduler that draws noise anew in every step is one of few-step students.
    scheduler = "few steps" if parts.configs["scheduler"].get("stochastic_sampling") else repr(parts.configs["scheduler"])
    cards = [card_of(folder), *(card_of(place if (place := lora.path).is_dir() else place.parent) for lora in parts.source.lora)]
    return guidance_note(defaults.guidance_scale, [*names_of(path), *named, scheduler], cards)


def _check_component(
    component: str, configs: dict[str, dict[str, Any]], weights: dict[str, dict[str, Weight]], listed: str
) -> list[Complaint]:
    """Check a configuration, fill in its defaults, and check the weights against it."""
    if wrong := check_class(component, configs[component], listed) or check_values(component, configs[component]):
        return wrong
    configs[component] = resolve_config(component, configs[component])
    return check_config(component, configs[component]) or check_weights(component, configs[component], weights[component])
