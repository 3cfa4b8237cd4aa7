"""Open and check a student: configurations and memory-mapped weights, no torch model.

A student is a folder in diffusers' ``StableDiffusion3Pipeline`` layout, or an original single-file checkpoint
(:mod:`exporters.single_file`) that lies in such a folder; :mod:`exporters.assembly` puts it together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporters.defaults import StudentDefaults, read_json
from exporters.errors import Complaint, StudentError
from exporters.files import hash_file
from exporters.recognise import Kind, file_kind, path_kind
from exporters.structure import COMPONENTS, check_index, is_listed
from exporters.templates import OPTIONAL_COMPONENTS
from exporters.weight_files import has_weight_files
from exporters.weights import Weight
from quantization.files import is_own

BUILTIN_STUDENT = Path(__file__).parent / "builtin_student"
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}
LARGEST_LICENCE = 1 << 20
LICENCE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


@dataclass(frozen=True)
class Student:
    """An opened and checked student.

    Attributes:
        path: the folder, or the single file, that was opened.
        configs: configuration of each component, and of the ``scheduler``.
        weights: weights of each component by diffusers' (transformers') tensor names.
        weight_files: the files that the weights lie in.
        folder: the folder with tokenizers, scheduler and licence.
        defaults: how the student wants to be run.
        stamps: inode, size and time of change of the files that it is read from, when it was opened.
        notes: what whoever uses it should know, a line each.
        adapters: LoRAs that lie beside its weights and are not applied.
    """

    path: Path
    folder: Path
    configs: dict[str, dict[str, Any]]
    weights: dict[str, dict[str, Weight]]
    weight_files: tuple[Path, ...]
    defaults: StudentDefaults = field(default_factory=StudentDefaults)
    stamps: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()

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
        found = [
            file
            for file in sorted(self.folder.iterdir())
            if file.name.upper().startswith(LICENCE_NAMES) and file.is_file() and self._is_own(file)
        ]
        complaints = [
            Complaint(str(file.parent / ascii(file.name)), "has a name that not every system can hold", "letters, digits, . _ -")
            for file in found
            if not re.fullmatch(r"[\w. ()+-]+", file.name, re.ASCII)
        ]
        complaints += [
            Complaint(str(file), "is too large for a licence", f"at most {LARGEST_LICENCE} bytes", str(file.stat().st_size))
            for file in found
            if file.stat().st_size > LARGEST_LICENCE
        ]
        if complaints:
            raise StudentError("The licences of the student cannot be taken along.", complaints, "rename or shorten them")
        return {file.name: file.read_text("utf-8", errors="replace") for file in found}

    def _is_own(self, file: Path) -> bool:
        return is_own(file, self.folder)

    def fingerprint(self, progress: Callable[[int], None] | None = None) -> str:
        """SHA-256 over the content of configurations, tokenizers and weights: the same student, the same fingerprint.

        Args:
            progress: called with the number of bytes just read.
        """
        total = hashlib.sha256()
        for file in self.files():
            name = file.relative_to(self.folder).as_posix()
            total.update(f"{name}:{hash_file(file, progress)}\n".encode(errors="surrogateescape"))  # names may be any bytes
        return f"sha256:{total.hexdigest()}"

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
        return [*self.weight_files, *self._small_files()]

    def _small_files(self) -> Iterable[Path]:
        yield from (file for file in (self.folder / "student.json",) if file.is_file())
        yield from (file for name in sorted(self.configs) if (file := self.folder / name / "config.json").is_file())
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
    """

    path: Path
    variant: str | None = None
    ignore_lora: bool = False
    without: tuple[str, ...] = ()

    def open(self) -> Student:
        """Open the student and check it against its own configuration.

        Raises:
            StudentError: every complaint at once, each with component, tensor, expected and got.
        """
        from exporters.assembly import assemble
        from exporters.single_file import open_single_file

        path = self.path
        if path.exists() and not path.is_dir():
            _check_single_file(path)
            return open_single_file(self)
        _check_folder(path)
        index = read_json(path / "model_index.json")
        check_index(path, index)
        listed = [c for c in COMPONENTS if is_listed(index, c) and c not in self.without]
        absent = [c for c in listed if c in OPTIONAL_COMPONENTS and not has_weight_files(path / c)]
        return assemble(self, path, [c for c in listed if c not in absent], [ABSENT.format(c) for c in absent])


ABSENT = "{} (T5) is listed and its weights are not there: the student is one without it"


def open_student(
    path: Path | str = BUILTIN_STUDENT,
    variant: str | None = None,
    without: Collection[str] = (),
    ignore_lora: bool = False,
) -> Student:
    """Open a student and check it against its own configuration.

    Args:
        path: a folder in diffusers layout, or an original single-file checkpoint inside one.
        variant: which variant of the weight files to take (``fp16`` for ``model.fp16.safetensors``).
        without: optional components that are not opened even if they are there.
        ignore_lora: draw without a LoRA that lies beside the weights; else such a student is refused.

    Raises:
        StudentError: every complaint at once, each with component, tensor, expected and got.
    """
    return StudentSource(Path(path), variant, ignore_lora, tuple(without)).open()


def stamp(file: Path) -> tuple[int, ...]:
    """What changes when a file is written: inode, size and time; nothing of one that is not there."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns)


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
    if path.suffix == ".safetensors":
        return
    kind = file_kind(path) if path.is_file() else Kind("is not a file", "give a single .safetensors file")
    kind = kind or Kind("is not a safetensors file", "convert it to safetensors where you trust it")
    raise StudentError(f"{path} {kind.what}.", remedy=kind.remedy, kind=kind.what)
