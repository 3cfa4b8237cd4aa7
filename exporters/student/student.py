"""Open and check a student: configurations and memory-mapped weights, no torch model.

A student is a folder in diffusers' ``StableDiffusion3Pipeline`` layout, or an original single-file checkpoint
(:mod:`exporters.student.single_file`) that lies in such a folder; :mod:`exporters.student.assembly` puts it together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporters.errors import Complaint, StudentError
from exporters.hashing import hash_file
from exporters.links import is_own
from exporters.student.defaults import StudentDefaults, defaults_file
from exporters.student.weights.lora.apply import Merged
from exporters.student.weights.lora.source import Lora
from exporters.student.weights.weight import Weight

BUILTIN_STUDENT = Path(__file__).parents[1] / "builtin_student"
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}
LARGEST_LICENCE = 1 << 20
LICENCE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


@dataclass(frozen=True)
class Student:
    """An opened and checked student.

    Attributes:
        path: the folder, or the single file, that was opened.
        configs: configuration of each component, with the defaults that an export reads, and of the ``scheduler``.
        weights: weights of each component by diffusers' (transformers') tensor names.
        weight_files: the files that the weights lie in.
        folder: the folder with tokenizers, scheduler and licence.
        defaults: how the student wants to be run.
        stamps: inode, size and time of change of the files that it is read from, when it was opened.
        notes: what whoever uses it should know, a line each.
        guidance_note: what to say where it is drawn without guidance; empty where its files settle that it needs none.
        adapters: LoRAs that lie beside its weights and are not applied.
        stored_configs: configuration of each component as it is stored.
        variant: of the weight files that were taken.
        loras: that were merged into its weights, in their order.
        elsewhere: files of the components that are not the folder's own, weights and configuration.
    """

    path: Path
    folder: Path
    configs: dict[str, dict[str, Any]]
    weights: dict[str, dict[str, Weight]]
    weight_files: tuple[Path, ...]
    defaults: StudentDefaults = field(default_factory=StudentDefaults)
    stamps: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    guidance_note: str = ""
    adapters: tuple[Path, ...] = ()
    stored_configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    variant: str | None = None
    loras: tuple[Merged, ...] = ()
    elsewhere: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    @property
    def has_t5(self) -> bool:
        """Whether the third text encoder is there."""
        return "text_encoder_3" in self.weights

    def tokenizer_folder(self, component: str) -> Path:
        """The folder of the tokenizer that belongs to a text encoder."""
        return self.folder / TOKENIZERS[component]

    def licences(self) -> dict[str, str]:
        """Licence texts found in the student, by file name; links are not followed out of it.

        Raises:
            StudentError: a text that cannot travel in every bundle, by its name or its size.
        """
        files = [
            file
            for file in sorted(self.folder.iterdir())
            if file.name.upper().startswith(LICENCE_NAMES) and file.is_file() and self._is_own(file)
        ]
        complaints = [
            Complaint(str(file.parent / ascii(file.name)), "has a name that not every system can hold", "letters, digits, . _ -")
            for file in files
            if not re.fullmatch(r"[\w. ()+-]+", file.name, re.ASCII)
        ]
        complaints += [
            Complaint(str(file), "is too large for a licence", f"at most {LARGEST_LICENCE} bytes", str(file.stat().st_size))
            for file in files
            if file.stat().st_size > LARGEST_LICENCE
        ]
        if complaints:
            raise StudentError("The licences of the student cannot be taken along.", complaints, "rename or shorten them")
        return {file.name: file.read_text("utf-8", errors="replace") for file in files}

    def _is_own(self, file: Path) -> bool:
        return is_own(file, self.folder)

    def fingerprint(self, progress: Callable[[int], None] | None = None) -> str:
        """SHA-256 over the content of configurations, tokenizers, weights and LoRAs with their scales.

        The same student, the same fingerprint.

        Args:
            progress: called with the number of bytes just read.
        """
        total = hashlib.sha256()
        for file in (*self.weight_files, *self._small_files()):
            name = self._name(file)
            total.update(f"{name}:{hash_file(file, progress)}\n".encode(errors="surrogateescape"))  # names may be any bytes
        for lora in self.loras:
            total.update(lora.identity(progress).encode())
        return f"sha256:{total.hexdigest()}"

    def _name(self, file: Path) -> str:
        """What a file is called in the fingerprint: its path in the folder, or whose it is where it is from elsewhere."""
        for component, files in self.elsewhere.items():
            if file in files:
                return f"elsewhere/{component}/{file.name}"
        return file.relative_to(self.folder).as_posix()

    def check_unchanged(self) -> None:
        """Complain if a file has changed since the student was opened: what was read of it would be of no one student.

        Raises:
            StudentError: naming the files.
        """
        if changed := [file for file, old in self.stamps.items() if stamp(file) != old]:
            complaints = [Complaint(str(file), "has changed since the student was opened") for file in changed]
            raise StudentError(f"{self.path} is being written to.", complaints, "try again when it is complete")

    def files(self) -> list[Path]:
        """Every file that the student is made of."""
        return [*self.weight_files, *self._small_files(), *(file for lora in self.loras for file in lora.files)]

    def _small_files(self) -> Iterable[Path]:
        yield from (file for file in (defaults_file(self.folder, self.variant),) if file.is_file())
        own = sorted(self.configs.keys() - self.elsewhere.keys())
        yield from (file for name in own if (file := self.folder / name / "config.json").is_file())
        yield from (file for name in sorted(self.elsewhere) for file in self.elsewhere[name] if file.suffix == ".json")
        yield self.folder / "scheduler" / "scheduler_config.json"
        for component in sorted(self.weights.keys() & TOKENIZERS.keys()):
            yield from sorted(p for p in self.tokenizer_folder(component).iterdir() if p.is_file())


@dataclass(frozen=True)
class StudentSource:
    """A student that is to be opened, and how.

    Attributes:
        path: a folder in diffusers layout, or an original single-file checkpoint inside one.
        variant: which variant of the weight files to take (``fp16`` for ``model.fp16.safetensors``).
        ignore_lora: draw without a LoRA that lies beside the weights; else such a student is refused.
        without: optional components that are not opened even if they are there.
        lora: LoRAs that are merged into its weights, in their order.
        components: those that come from elsewhere, and from where: a folder of their own, a pipeline's, or a single file.
    """

    path: Path
    variant: str | None = None
    ignore_lora: bool = False
    without: tuple[str, ...] = ()
    lora: tuple[Lora, ...] = ()
    components: tuple[tuple[str, Path], ...] = ()


def stamp(file: Path) -> tuple[int, ...]:
    """What changes when a file is written: inode, size and time; nothing of one that is not there."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns)
