"""Which schedule a bundle of the layout ``swift`` tells Apple's client to draw by, and whether its pictures come near enough."""

from __future__ import annotations

from deploy.bundle.manifest import ClientScheduleRecord
from deploy.errors import Complaint, InputError
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import GraphOptions
from exporters.reference.swift_schedule import ClientSchedule, client_schedule
from exporters.student.student import Student

REQUIRED_DB = 50.0  # of pictures drawn so against the student's own, beside each other not to be told apart
LARGEST_ERROR = 0.01  # of a noise level, where no pictures are drawn: the built-in student's differ by 50 dB at about that
REMEDY = "--sigmas or --steps of a schedule that the client has, or --force-schedule to build all the same"


def choose_client_schedule(
    student: Student, options: GraphOptions, sampling: Sampling, force: bool, costly: bool
) -> tuple[ClientScheduleRecord, tuple[str, ...]]:
    """The schedule, and what whoever builds should know of it.

    Args:
        student: the student.
        options: the bundle's shape.
        sampling: the student's own schedule.
        force: take what there is, however far off.
        costly: draw pictures whatever it takes.

    Raises:
        InputError: the client comes nowhere near the student's schedule.
    """
    schedule = client_schedule(student, options, sampling, costly)
    told = f"stepCount {schedule.steps} and schedulerTimestepShift {schedule.shift:g}"
    near = schedule.error <= LARGEST_ERROR if schedule.psnr_db is None else schedule.psnr_db >= REQUIRED_DB
    if not near and not force:
        raise InputError(
            "The Swift client cannot draw by this student's schedule.", [_complaint(schedule, told, sampling)], REMEDY
        )
    notes = []
    if schedule.psnr_db is None:
        notes.append(
            f"the Swift client's nearest schedule, {told}, was not measured: drawing with this student takes minutes, which "
            f"--parity always spends; its noise levels are within {schedule.error:.2g} of the student's"
        )
    elif not near:
        notes.append(
            f"by the Swift client's nearest schedule, {told}, pictures come within {schedule.psnr_db:.1f} dB PSNR of "
            f"the student's own; {REQUIRED_DB:.0f} dB are required but for --force-schedule"
        )
    return ClientScheduleRecord(steps=schedule.steps, shift=schedule.shift, psnr_db=schedule.psnr_db), tuple(notes)


def _complaint(schedule: ClientSchedule, told: str, sampling: Sampling) -> Complaint:
    own, nearest = (", ".join(f"{sigma:.4g}" for sigma in sigmas) for sigmas in (sampling.sigmas[:-1], schedule.sigmas))
    problem = f"the client comes nearest with {told} (noise levels {nearest}; the student's are {own})"
    if schedule.psnr_db is None:
        return Complaint("schedule", problem, f"each within {LARGEST_ERROR:g}", f"{schedule.error:.2g} off")
    return Complaint("schedule", problem, f"{REQUIRED_DB:.0f} dB PSNR of its pictures", f"{schedule.psnr_db:.1f} dB")
