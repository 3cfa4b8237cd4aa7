"""Open and check a student: configurations and memory-mapped weights, no torch model.

A student is a folder in diffusers' ``StableDiffusion3Pipeline`` layout, or an original single-file checkpoint
(:mod:`exporters.single_file`) that lies in such a folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from exporters.checkpoint import PICKLE_SUFFIXES, open_component
from exporters.configs import LARGEST, MOST_STEPS, check_config, check_values
from exporters.errors import Complaint, StudentError
from exporters.files import hash_file
from exporters.templates import OPTIONAL_COMPONENTS, check_weights, component_class, resolve_config
from exporters.weights import Weight

BUILTIN_STUDENT = Path(__file__).parent / "builtin_student"
COMPONENTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}
LARGEST_LICENCE = 1 << 20
LICENCE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


@dataclass(frozen=True)
class StudentDefaults:
    """How a student wants to be run: ``student.json`` beside ``model_index.json``.

    Attributes:
        steps: denoising steps.
        sigmas: one sigma for each step, before the scheduler's shift.
        guidance_scale: only 1.0 (no guidance) can be run.
        height: picture height in pixels.
        width: picture width in pixels.
        max_sequence_length: T5 tokens, kept or (as zeros) dropped.
    """

    steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    guidance_scale: float = 1.0
    height: int | None = None
    width: int | None = None
    max_sequence_length: int = 256


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
    """

    path: Path
    folder: Path
    configs: dict[str, dict[str, Any]]
    weights: dict[str, dict[str, Weight]]
    weight_files: tuple[Path, ...]
    defaults: StudentDefaults = field(default_factory=StudentDefaults)
    stamps: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
        """Whether a file is the student's, links followed: hub caches keep content in ``blobs`` beside ``snapshots/REVISION``."""
        homes = (self.folder.resolve(), self.folder.resolve().parent.parent / "blobs")
        return any(file.resolve().is_relative_to(home) for home in homes)

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
        if changed := [file for file, stamp in self.stamps.items() if _stamp(file) != stamp]:
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


def open_student(path: Path | str = BUILTIN_STUDENT, variant: str | None = None, without: Collection[str] = ()) -> Student:
    """Open a student and check it against its own configuration.

    Args:
        path: a folder in diffusers layout, or an original single-file checkpoint inside one.
        variant: which variant of the weight files to take (``fp16`` for ``model.fp16.safetensors``).
        without: optional components that are not opened even if they are there.

    Raises:
        StudentError: every complaint at once, each with component, tensor, expected and got.
    """
    path = Path(path)
    if path.is_file():
        from exporters.single_file import open_single_file

        _refuse_pickle(path)
        return open_single_file(path, variant, without)
    folder = _existing_folder(path)
    index = read_json(folder / "model_index.json")
    _check_index(folder, index)
    return assemble(path, folder, [c for c in COMPONENTS if _is_listed(index, c) and c not in without], variant)


def assemble(
    path: Path,
    folder: Path,
    components: Iterable[str],
    variant: str | None,
    given: dict[str, tuple[dict[str, Any], dict[str, Weight]]] | None = None,
    given_files: Iterable[Path] = (),
) -> Student:
    """Read the components from ``folder`` but those that are ``given``, check all, and make the student."""
    given = given or {}
    configs: dict[str, dict[str, Any]] = {}
    weights: dict[str, dict[str, Weight]] = {}
    files: list[Path] = list(given_files)
    complaints: list[Complaint] = []
    remedies: list[str] = []
    for component in components:
        try:
            if component in given:
                configs[component], weights[component] = given[component]
            else:
                configs[component] = read_json(folder / component / "config.json")
                weights[component], found = open_component(folder / component, component, variant)
                files += found
            complaints += _check_component(component, configs, weights)
            if component in TOKENIZERS:
                complaints += _check_tokenizer(folder / TOKENIZERS[component])
        except StudentError as error:
            complaints += error.complaints or [Complaint(component, error.headline)]
            remedies += [error.remedy] if error.remedy else []
    if variant is not None and files and not any(f".{variant}" in file.name for file in files):
        complaints.append(Complaint("--variant", "no component has it", "the variant of some weight files", variant))
    try:
        configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
        complaints += _check_scheduler(configs["scheduler"])
        defaults = _read_defaults(folder / "student.json")
    except StudentError as error:
        complaints += error.complaints
    if complaints:
        raise StudentError(f"{path} is not a usable student.", complaints, "; ".join(dict.fromkeys(remedies)))
    _check_fit(path, configs)
    student = Student(path, folder, configs, weights, tuple(files), defaults)
    student.stamps.update({file: _stamp(file) for file in student.files()})
    return student


def _check_component(
    component: str, configs: dict[str, dict[str, Any]], weights: dict[str, dict[str, Weight]]
) -> list[Complaint]:
    """Check a configuration, fill in its defaults, and check the weights against it."""
    if wrong := check_values(component, configs[component]):
        return wrong
    configs[component] = resolve_config(component, configs[component])
    return check_config(component, configs[component]) or check_weights(component, configs[component], weights[component])


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a student.

    Raises:
        StudentError: the file is missing or is not a JSON object.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise StudentError("A file of the student cannot be read.", [Complaint(str(file), "is not a file", "a JSON object")])
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise StudentError(
            "A file of the student is missing.",
            [Complaint(str(file), "no such file")],
            "check that the download is complete",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StudentError(
            "A file of the student cannot be read.", [Complaint(str(file), str(error), "a JSON object")]
        ) from error
    if not isinstance(content, dict):
        raise StudentError(
            "A file of the student cannot be read.",
            [Complaint(str(file), "wrong content", "a JSON object", type(content).__name__)],
        )
    return content


def _existing_folder(path: Path) -> Path:
    if not path.exists():
        raise StudentError(
            f"{path} does not exist.",
            remedy="give the folder of a student in diffusers layout, or a single .safetensors file",
        )
    if not (path / "model_index.json").is_file():
        raise StudentError(
            f"{path} is not a student.",
            [
                Complaint(
                    str(path / "model_index.json"),
                    "no such file",
                    "a folder in diffusers StableDiffusion3Pipeline layout",
                )
            ],
            "save the pipeline with save_pretrained, or give the single .safetensors file itself",
        )
    return path


def _refuse_pickle(path: Path) -> None:
    if path.suffix == ".safetensors":
        return
    what = "is a pickle checkpoint, which can run any code when opened; it was not opened"
    if path.suffix not in PICKLE_SUFFIXES:
        what = "is not a safetensors file"
    raise StudentError(f"{path} {what}.", remedy="convert it to safetensors where you trust it")


def _is_listed(index: dict[str, Any], component: str) -> bool:
    entry = index.get(component)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _check_index(folder: Path, index: dict[str, Any]) -> None:
    complaints = []
    where = str(folder / "model_index.json")
    pipeline = str(index.get("_class_name"))
    if not pipeline.startswith("StableDiffusion3"):
        complaints.append(Complaint(where, "another pipeline", "StableDiffusion3Pipeline", pipeline))
    for component in COMPONENTS:
        entry = index.get(component, [None, None])
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str | None) for part in entry)):
            complaints.append(Complaint(where, f"{component} is wrong", "[library, class]", repr(entry)))
        elif not _is_listed(index, component):
            if component not in OPTIONAL_COMPONENTS:
                complaints.append(Complaint(where, f"{component} is not listed"))
        elif index[component][1] != component_class(component):
            complaints.append(Complaint(where, f"{component} has another class", component_class(component), index[component][1]))
    if complaints:
        raise StudentError(f"{folder} is not a Stable Diffusion 3 student.", complaints)


def _check_tokenizer(folder: Path) -> list[Complaint]:
    if not folder.is_dir():
        return [Complaint(str(folder), "no such folder", "a tokenizer")]
    names = {file.name for file in folder.iterdir() if file.is_file()}
    if "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names or "spiece.model" in names:
        return []
    return [Complaint(str(folder), "no tokenizer in it", "tokenizer.json, vocab.json + merges.txt, or spiece.model")]


def _check_scheduler(config: dict[str, Any]) -> list[Complaint]:
    name = config.get("_class_name")
    if name == "FlowMatchEulerDiscreteScheduler":
        return check_config("scheduler", config)
    return [Complaint("scheduler", "another scheduler", "FlowMatchEulerDiscreteScheduler", str(name))]


def _read_defaults(file: Path) -> StudentDefaults:
    if not file.exists() and not file.is_symlink():
        return StudentDefaults()
    content = read_json(file)
    known = {f.name for f in fields(StudentDefaults)}
    complaints = [
        Complaint(str(file), f"unknown key {key!r}", f"one of {', '.join(sorted(known))}") for key in content.keys() - known
    ]
    complaints += [
        Complaint(str(file), f"{key} is wrong", f"a whole number from 1 to {most}", repr(content[key]))
        for key, most in (("steps", MOST_STEPS), ("height", LARGEST), ("width", LARGEST), ("max_sequence_length", LARGEST))
        if key in content and not (_is_number(content[key], int) and 1 <= content[key] <= most)
    ]
    if not _is_number(content.get("guidance_scale", 1.0), int, float):
        complaints.append(Complaint(str(file), "guidance_scale is wrong", "a number", repr(content["guidance_scale"])))
    sigmas = content.get("sigmas")
    if sigmas is not None and not (isinstance(sigmas, list) and sigmas and all(_is_number(s, int, float) for s in sigmas)):
        complaints.append(Complaint(str(file), "sigmas is wrong", "a list of numbers", repr(sigmas)))
    elif sigmas is not None:
        content["sigmas"] = tuple(float(s) for s in sigmas)
        if len(sigmas) != content.get("steps", len(sigmas)):
            complaints.append(Complaint(str(file), "sigmas and steps disagree", f"{content['steps']} sigmas", str(len(sigmas))))
    if complaints:
        raise StudentError("student.json is not usable.", complaints)
    return StudentDefaults(**content)


def _is_number(value: object, *kinds: type) -> bool:
    """Whether it is a finite number of those types that a float can hold; booleans are none."""
    return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def _check_fit(path: Path, configs: dict[str, dict[str, Any]]) -> None:
    """The components must fit each other: widths of text states, pooled projections and latents."""
    transformer, vae = configs["transformer"], configs["vae"]
    clips = [configs[name] for name in ("text_encoder", "text_encoder_2")]
    joint, pooled = transformer["joint_attention_dim"], transformer["pooled_projection_dim"]
    complaints = []
    if (got := sum(c["projection_dim"] for c in clips)) != pooled:
        complaints.append(
            Complaint("transformer: pooled_projection_dim", "differs from the CLIP projections", str(pooled), str(got))
        )
    if (got := sum(c["hidden_size"] for c in clips)) > joint:
        complaints.append(
            Complaint("transformer: joint_attention_dim", "the CLIP states are wider", f"at most {joint}", str(got))
        )
    if "text_encoder_3" in configs and (got := configs["text_encoder_3"]["d_model"]) != joint:
        complaints.append(Complaint("text_encoder_3: d_model", "differs from joint_attention_dim", str(joint), str(got)))
    if (got := transformer["caption_projection_dim"]) != (
        inner := transformer["num_attention_heads"] * transformer["attention_head_dim"]
    ):
        complaints.append(Complaint("transformer: caption_projection_dim", "differs from heads x head_dim", str(inner), str(got)))
    if (got := vae["latent_channels"]) != transformer["in_channels"]:
        complaints.append(
            Complaint(
                "vae: latent_channels",
                "differs from the transformer's in_channels",
                str(transformer["in_channels"]),
                str(got),
            )
        )
    if complaints:
        raise StudentError(f"The components of {path} do not fit each other.", complaints)
