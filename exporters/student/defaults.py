"""The JSON files of a student, and how it wants to be run: ``student.json`` beside ``model_index.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from exporters.choices import Sampler, UpscaleMode, options
from exporters.errors import Complaint, StudentError
from exporters.guidance import guidance_complaints
from exporters.student.configs import LARGEST, MOST_STEPS
from exporters.student.weights.recognise import file_kind


@dataclass(frozen=True)
class StudentDefaults:
    """How a student wants to be run: ``student.json`` beside ``model_index.json``.

    Attributes:
        steps: denoising steps.
        sigmas: one noise level for each step, before the scheduler's shift.
        sigmas_after_shift: likewise, as they are.
        timesteps: what the transformer is told at each step, where that is not 1000 times the noise level.
        shift: of noise levels, in place of the scheduler's.
        sampler: how to step, in place of the scheduler's.
        scales: sizes of the latents of each step, as shares of the last; none where they do not grow.
        upscale_mode: how they are enlarged.
        guidance_scale: 1.0 (or diffusers' 0.0) is no guidance. None: nothing is said of it.
        negative_prompt: what guidance goes away from; this and what follows as in :class:`exporters.guidance.Guidance`.
        guidance_interval: noise levels of steps that are guided.
        skip_guidance_layers: of the transformer, for skip-layer guidance.
        skip_layer_guidance_scale: its scale.
        skip_layer_guidance_start: where it begins.
        skip_layer_guidance_stop: where it ends.
        height: picture height in pixels.
        width: picture width in pixels.
        max_sequence_length: T5 tokens, kept or (as zeros) dropped.
        world: of captions that it was trained on, where an exact scorer of that world can tell right pictures from wrong ones.
    """

    steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    sigmas_after_shift: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None
    shift: float | None = None
    sampler: Sampler | None = None
    scales: tuple[float, ...] | None = None
    upscale_mode: UpscaleMode | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    guidance_interval: tuple[float, float] | None = None
    skip_guidance_layers: tuple[int, ...] | None = None
    skip_layer_guidance_scale: float | None = None
    skip_layer_guidance_start: float | None = None
    skip_layer_guidance_stop: float | None = None
    height: int | None = None
    width: int | None = None
    max_sequence_length: int = 256
    world: str | None = None


def defaults_file(folder: Path, variant: str | None = None) -> Path:
    """The file that says how a student's variant wants to be run: its own (``student.fp16.json``), or that of all.

    A folder can so hold students of several numbers of steps that differ in the transformer alone.
    """
    own = folder / f"student.{variant}.json"
    return own if variant and (own.exists() or own.is_symlink()) else folder / "student.json"


def read_defaults(file: Path) -> StudentDefaults:
    """How a student wants to be run; diffusers' defaults where there is no such file.

    Raises:
        StudentError: it cannot be read, or says what cannot be.
    """
    if not file.exists() and not file.is_symlink():
        return StudentDefaults()
    content = read_json(file)
    field_names = {f.name for f in fields(StudentDefaults)}
    complaints = [
        Complaint(str(file), f"unknown key {key!r}", f"one of {', '.join(sorted(field_names))}")
        for key in content.keys() - field_names
    ]
    complaints += [
        Complaint(str(file), f"{key} is wrong", f"a whole number from 1 to {most}", repr(content[key]))
        for key, most in (("steps", MOST_STEPS), ("height", LARGEST), ("width", LARGEST), ("max_sequence_length", LARGEST))
        if key in content and not (_is_number(content[key], int) and 1 <= content[key] <= most)
    ]
    if not isinstance(content.get("world", ""), str):
        complaints.append(Complaint(str(file), "world is wrong", "a name", repr(content["world"])))
    complaints += guidance_complaints(content, f"{file}: ")
    complaints += _schedule_complaints(file, content)
    if complaints:
        raise StudentError(f"{file.name} is not usable.", complaints)
    lists = {
        key: tuple(value) if key == "skip_guidance_layers" else tuple(map(float, value))
        for key, value in content.items()
        if isinstance(value, list)
    }
    return StudentDefaults(**content | lists)


def _schedule_complaints(file: Path, content: Mapping[str, Any]) -> list[Complaint]:
    complaints = []
    steps = content.get("steps")
    for key in ("sigmas", "sigmas_after_shift", "timesteps", "scales"):
        given = content.get(key)
        if given is not None and not (isinstance(given, list) and given and all(_is_number(s, int, float) for s in given)):
            complaints.append(Complaint(str(file), f"{key} is wrong", "a list of numbers", repr(given)))
        elif given is not None and steps is not None and len(given) != steps:
            complaints.append(Complaint(str(file), f"{key} and steps disagree", f"{steps} {key}", str(len(given))))
    shift = content.get("shift")
    if shift is not None and not (_is_number(shift, int, float) and shift > 0):
        complaints.append(Complaint(str(file), "shift is wrong", "a number above 0", repr(shift)))
    for key, choice in (("sampler", Sampler), ("upscale_mode", UpscaleMode)):
        if content.get(key) not in (None, *options(choice)):
            complaints.append(Complaint(str(file), f"{key} is wrong", " or ".join(options(choice)), repr(content[key])))
    if content.get("sigmas") is not None and content.get("sigmas_after_shift") is not None:
        complaints.append(Complaint(str(file), "sigmas and sigmas_after_shift exclude each other", "one of them"))
    return complaints


def _is_number(value: object, *kinds: type) -> bool:
    """Whether it is a finite number of those types that a float can hold; booleans are none."""
    return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a student.

    Raises:
        StudentError: the file is missing or is not a JSON object.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise StudentError("A file of the student cannot be read.", [Complaint(str(file), "is not a file", "a JSON object")])
        if (kind := file_kind(file)) is not None:
            complaint = Complaint(str(file), kind.what, "a JSON object")
            raise StudentError("A file of the student cannot be read.", [complaint], kind.remedy, f"{file.name} {kind.what}")
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
