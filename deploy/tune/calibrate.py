"""Calibrations from the command line's side: which prompts, where to, whole or absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deploy.build.plan import settle
from deploy.build.request import BuildRequest
from deploy.errors import InputError
from deploy.prompts import prompts_of_all_sorts, read_prompts
from exporters.streamed.calibrate import CalibrationPlan, calibrate
from exporters.student.student import Student
from quantization.calibration import FILE, Calibration
from quantization.folders import new_folder, real_place


def default_prompts(student: Path) -> tuple[str, ...]:
    """The student's own ``prompts.txt``, where its folder has one; else prompts of all sorts."""
    own = student / "prompts.txt"
    if own.is_file():
        return read_prompts(own)
    return prompts_of_all_sorts()


def open_calibration(folder: Path, student: Student) -> Calibration:
    """A calibration of this very student.

    Raises:
        InputError: it is damaged, or of another student.
    """
    calibration = Calibration(folder)
    calibration.check_student(student.fingerprint())
    return calibration


def calibrate_student(
    request: BuildRequest,
    prompts: Path | None,
    count: int,
    seed: int,
    tell: Callable[[str], None],
    note: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Calibrate into ``request.output``, which appears when it is whole.

    ``tell`` is told of every stage, ``note`` what the user should know of the student and its schedule.

    Raises:
        InputError: the student, the tier, an option, the prompts or the folder cannot be used.
    """
    output = real_place(request.output)
    if output.exists() and not (request.force and (output / FILE).is_file()):
        remedy = "give another folder" if request.force else "give another folder, or --force to replace a calibration"
        raise InputError(f"{output} is there already.", remedy=remedy)
    settled = settle(request)
    for text in settled.notes:
        note(text)
    chosen = (default_prompts(settled.student.path) if prompts is None else read_prompts(prompts))[:count]
    with new_folder(output, replace=request.force) as draft:
        calibrate(
            settled.student,
            settled.options,
            settled.sampling,
            CalibrationPlan(chosen, seed),
            draft,
            on_prompt=lambda done: tell(f"calibrating, prompt {done} of {len(chosen)}"),
        )
    return Calibration(output)
