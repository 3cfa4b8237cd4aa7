"""What a build is told of the Swift client's schedule, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

import deploy.build.swift.schedule
from deploy.build.swift.schedule import choose_client_schedule
from deploy.errors import InputError
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import GraphOptions
from exporters.reference.swift_schedule import ClientSchedule
from exporters.student.open import open_student

SAMPLING = Sampling("euler", (1.0, 0.9, 0.75, 0.5, 0.0), (1000.0, 900.0, 750.0, 500.0))
OPTIONS = GraphOptions("swift", 64, 64, SAMPLING.timesteps, 16, keep_t5=False, max_sequence_length=77)
FOUND = ClientSchedule(5, 2.97, (1.0, 0.899, 0.749, 0.5, 0.009), 0.001, 62.8)


def choose(schedule: ClientSchedule, monkeypatch: pytest.MonkeyPatch, force: bool = False) -> tuple[object, tuple[str, ...]]:
    monkeypatch.setattr(deploy.build.swift.schedule, "client_schedule", lambda *_: schedule)
    return choose_client_schedule(open_student(), OPTIONS, SAMPLING, force, costly=False)


def test_near_enough_needs_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    record, notes = choose(replace(FOUND, psnr_db=50.0), monkeypatch)
    assert (record.steps, record.shift, record.psnr_db) == (5, 2.97, 50.0)  # type: ignore[attr-defined]
    assert notes == ()


def test_too_far_is_refused_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as error:
        choose(replace(FOUND, psnr_db=49.9), monkeypatch)
    assert str(error.value) == (
        "The Swift client cannot draw by this student's schedule.\n"
        "  - schedule: the client comes nearest with stepCount 5 and schedulerTimestepShift 2.97 (noise levels 1, 0.899, 0.749, "
        "0.5, 0.009; the student's are 1, 0.9, 0.75, 0.5) (expected 50 dB PSNR of its pictures, got 49.9 dB)\n"
        "What to do: --sigmas or --steps of a schedule that the client has, or --force-schedule to build all the same"
    )
    [note] = choose(replace(FOUND, psnr_db=49.9), monkeypatch, force=True)[1]
    assert "pictures come within 49.9 dB PSNR of the student's own" in note


def test_what_was_not_measured_is_said_and_judged_by_its_sigmas(monkeypatch: pytest.MonkeyPatch) -> None:
    record, [note] = choose(replace(FOUND, psnr_db=None), monkeypatch)
    assert record.psnr_db is None  # type: ignore[attr-defined]
    assert "stepCount 5 and schedulerTimestepShift 2.97, was not measured" in note
    assert "--parity always" in note
    far = replace(FOUND, psnr_db=None, error=0.02)
    with pytest.raises(InputError, match=r"expected each within 0.01, got 0.02 off"):
        choose(far, monkeypatch)
    assert len(choose(far, monkeypatch, force=True)[1]) == 1
