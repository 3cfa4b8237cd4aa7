"""What is wanted of a schedule, by whoever asks and by the student."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from exporters.choices import Sampler, UpscaleMode
from exporters.errors import Complaint, ExportError
from exporters.student.configs import MOST_STEPS
from exporters.student.defaults import StudentDefaults

HEADLINE = "The schedule cannot be used."
LARGEST_SHIFT = 1e6
LARGEST_SCALE = 1 << 20


@dataclass(frozen=True)
class Schedule:
    """What is wanted of a schedule; None leaves it to the student, then to its scheduler.

    Attributes:
        steps: number of steps.
        sigmas: one noise level for each step, before the scheduler's shift.
        sigmas_after_shift: likewise, as they are; a last 0 may be among them.
        timesteps: what the transformer is told at each step.
        shift: of noise levels, in place of the scheduler's.
        sampler: how to step, in place of the scheduler's.
        scales: sizes of the latents of each step, as shares of the last, which is the picture's.
        upscale_mode: how they are enlarged between steps.
    """

    steps: int | None = None
    sigmas: Sequence[float] | None = None
    sigmas_after_shift: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    shift: float | None = None
    sampler: Sampler | None = None
    scales: Sequence[float] | None = None
    upscale_mode: UpscaleMode | None = None

    def levels(self) -> int | None:
        """How many steps the lists are for; none where there are none."""
        return next(
            (len(given) for given in (self.sigmas, self._unshifted(), self.timesteps, self.scales) if given is not None), None
        )

    def _unshifted(self) -> tuple[float, ...] | None:
        given = self.sigmas_after_shift
        return None if given is None else tuple(given[:-1] if len(given) > 1 and given[-1] == 0 else given)

    def over(self, student: StudentDefaults) -> Schedule:
        """With what the student says of what is not wanted otherwise: its lists where they are for as many steps.

        Raises:
            ExportError: what is wanted contradicts itself.
        """
        self.check()
        wanted = replace(self, sigmas_after_shift=self._unshifted())
        own = Schedule(student.steps, student.sigmas, student.sigmas_after_shift, student.timesteps, scales=student.scales)
        own = replace(own, sigmas_after_shift=own._unshifted())
        steps = wanted.steps or wanted.levels() or own.levels() or own.steps
        if own.levels() == steps and wanted.sigmas is None and wanted.sigmas_after_shift is None:
            wanted = replace(wanted, sigmas=own.sigmas, sigmas_after_shift=own.sigmas_after_shift)
            wanted = wanted if wanted.timesteps is not None else replace(wanted, timesteps=own.timesteps)
        if own.scales and wanted.scales is None:
            if len(own.scales) != steps:
                complaint = Complaint("scales", "the student's latents grow in other steps", str(len(own.scales)), str(steps))
                raise ExportError(HEADLINE, [complaint], "give as many scales as there are steps")
            wanted = replace(wanted, scales=own.scales)
        return replace(wanted, steps=steps, upscale_mode=wanted.upscale_mode or student.upscale_mode)

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ExportError: with a complaint for each thing.
        """
        complaints = self._contradictions()
        lists = {
            "sigmas": self.sigmas,
            "sigmas_after_shift": self._unshifted(),
            "timesteps": self.timesteps,
            "scales": self.scales,
        }
        wanted = self.steps or self.levels()
        for name, given in lists.items():
            if given is not None:
                complaints += _wrong_list(name, given, wanted)
        if complaints:
            raise ExportError(HEADLINE, complaints)

    def _contradictions(self) -> list[Complaint]:
        complaints = []
        if self.sigmas is not None and self.sigmas_after_shift is not None:
            complaints.append(Complaint("sigmas", "are given before the shift and after it", "one of them"))
        if self.sigmas_after_shift is not None and self.shift is not None:
            complaints.append(Complaint("shift", "does nothing to sigmas that are given after it", "one of them"))
        if self.shift is not None and not 0 < self.shift <= LARGEST_SHIFT:
            complaints.append(Complaint("shift", "wrong", f"a number above 0, at most {LARGEST_SHIFT:g}", str(self.shift)))
        if self.steps is not None and self.steps > MOST_STEPS:
            complaints.append(Complaint("steps", "too many", f"at most {MOST_STEPS}", str(self.steps)))
        return complaints


def _wrong_list(name: str, given: Sequence[float], steps: int | None) -> list[Complaint]:
    """What is wrong with one number for each step: levels and timesteps fall, sizes do not."""
    complaints, got = [], ",".join(map(str, given))
    if len(given) != steps:
        complaints.append(Complaint(name, "not one for each step", str(steps), str(len(given))))
    most = {"timesteps": 1000, "scales": LARGEST_SCALE}.get(name, 1)
    grows = name == "scales"
    ordered = all(a <= b if grows else a > b for a, b in itertools.pairwise(given))
    if not (all(0 < one <= most for one in given) and ordered):
        expected = "numbers above 0 that do not fall" if grows else f"numbers that fall, from at most {most}, to above 0"
        complaints.append(Complaint(name, "wrong", expected, got))
    return complaints
