"""What every peer has in common: a job (whose pictures, how many steps) and a diffusers pipeline that it opens for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import msgspec

from exporters.layouts.sampling import Sampling
from exporters.student.open import open_student
from exporters.student.student import Student
from exporters.student.weights.templates import OPTIONAL_COMPONENTS
from quantization.errors import Complaint, InputError

NO_T5 = "the plain exports are of students without T5: build the bundle with --drop-t5"


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The pictures that a bundle draws, for something else to draw.

    Attributes:
        student: its folder.
        variant: of its weight files.
        ignore_lora: whether a LoRA beside them is left out.
        lora: LoRAs that are merged into them, each as FILE:SCALE.
        components: of the student that come from elsewhere.
        fingerprint: of the student, as the bundle's manifest has it.
        height: of pictures, in pixels.
        width: likewise.
        sampling: the schedule.
        keep_t5: whether T5 takes part.
        max_sequence_length: T5's tokens, or zero tokens in their place.
        clip_tokens: of both CLIP encoders.
        folder: where :meth:`Peer.prepare` puts its files.
        threads: of one operator; by default the runtime's choice.
    """

    student: str
    fingerprint: str
    height: int
    width: int
    sampling: Sampling
    keep_t5: bool
    max_sequence_length: int
    clip_tokens: int
    folder: str
    threads: int | None = None
    variant: str | None = None
    ignore_lora: bool = False
    lora: tuple[str, ...] = ()
    components: dict[str, str] = {}

    def open_student(self) -> Student:
        """The student, without the parts that take no part."""
        without = () if self.keep_t5 else OPTIONAL_COMPONENTS
        return open_student(Path(self.student), self.variant, without, self.ignore_lora, self.lora, self.components)


class Peer(Protocol):
    """Another way to draw with a student."""

    @property
    def packages(self) -> tuple[str, ...]:
        """What must be installed."""

    @property
    def kept_t5(self) -> bool:
        """Whether it can draw with T5."""

    @property
    def has_files(self) -> bool:
        """Whether there is something to prepare."""

    def prepare(self, job: Job, student: Student) -> None:
        """Write into ``job.folder`` what :meth:`open` needs."""

    def open(self, job: Job, student: Student) -> Any:
        """A ``StableDiffusion3Pipeline`` with everything loaded."""


def absent(peer: Peer, keep_t5: bool) -> str:
    """Why a peer cannot run here; empty where it can."""
    missing = [package for package in peer.packages if find_spec(package) is None]
    if missing:
        return f"{missing[0]} is not installed (pip install 'flash-deploy[export,openvino,peers]')"
    return NO_T5 if keep_t5 and not peer.kept_t5 else ""


def read_job(text: str) -> Job:
    """A job from JSON.

    Raises:
        InputError: it is none.
    """
    try:
        return msgspec.json.decode(text, type=Job)
    except msgspec.MsgspecError as error:
        raise InputError("The job cannot be read.", [Complaint("JOB", str(error))]) from error
