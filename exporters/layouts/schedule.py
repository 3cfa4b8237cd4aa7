"""What is wanted of a schedule, by whoever asks and by the student."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from exporters.choices import Sampler
from exporters.errors import Complaint, ExportError
from exporters.student.configs import MOST_STEPS
from exporters.student.defaults import StudentDefaults

LARGEST_SHIFT = 1e6


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
    """

    steps: int | None = None
    sigmas: Sequence[float] | None = None
    sigmas_after_shift: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    shift: float | None = None
    sampler: Sampler | None = None

    def levels(self) -> int | None:
        """How many steps the lists are for; none where there are none."""
        return next((len(given) for given in (self.sigmas, self._unshifted(), self.timesteps) if given is not None), None)

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
        own = Schedule(student.steps, student.sigmas, student.sigmas_after_shift, student.timesteps)
        own = replace(own, sigmas_after_shift=own._unshifted())
        steps = wanted.steps or wanted.levels() or own.levels() or own.steps
        if own.levels() == steps and wanted.sigmas is None and wanted.sigmas_after_shift is None:
            wanted = replace(wanted, sigmas=own.sigmas, sigmas_after_shift=own.sigmas_after_shift)
            wanted = wanted if wanted.timesteps is not None else replace(wanted, timesteps=own.timesteps)
        return replace(wanted, steps=steps)

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ExportError: with a complaint for each thing.
        """
        complaints = []
        if self.sigmas is not None and self.sigmas_after_shift is not None:
            complaints.append(Complaint("sigmas", "are given before the shift and after it", "one of them"))
        if self.sigmas_after_shift is not None and self.shift is not None:
            complaints.append(Complaint("shift", "does nothing to sigmas that are given after it", "one of them"))
        if self.shift is not None and not 0 < self.shift <= LARGEST_SHIFT:
            complaints.append(Complaint("shift", "wrong", f"a number above 0, at most {LARGEST_SHIFT:g}", str(self.shift)))
        for name, given in (("sigmas", self.sigmas), ("sigmas_after_shift", self._unshifted()), ("timesteps", self.timesteps)):
            if given is None:
                continue
            wanted = self.steps or self.levels()
            if len(given) != wanted:
                complaints.append(Complaint(name, "not one for each step", str(wanted), str(len(given))))
            most = 1000 if name == "timesteps" else 1
            falls = all(a > b for a, b in itertools.pairwise(given))
            if not (all(0 < one <= most for one in given) and falls):
                told = f"numbers that fall, from at most {most}, to above 0"
                complaints.append(Complaint(name, "wrong", told, ",".join(map(str, given))))
        if self.steps is not None and self.steps > MOST_STEPS:
            complaints.append(Complaint("steps", "too many", f"at most {MOST_STEPS}", str(self.steps)))
        if complaints:
            raise ExportError("The schedule cannot be used.", complaints)
