"""What `bench` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.errors import Complaint, InputError


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    Attributes:
        bundles: folders.
        targets: names of :data:`deploy.targets.TARGETS`; by default those that run the bundles' formats.
        runs: measured runs of each graph and picture in each round.
        rounds: fresh processes for each bundle and target, interleaved.
        warm_ups: runs before those.
        threads: threads of one operator.
        student: also compare graphs and pictures with this student in diffusers, and measure it where targets ask for it.
        remote: a command with ``{command}`` in it, for a device elsewhere: ``ssh phone {command}``.
        prompts: a file of prompts to compare pictures of; by default the student's own, or prompts of all sorts.
        pictures: how many of them.
        score: how many more pictures the built-in student's scorer judges.
        clip: folder of a CLIP model that scores pictures.
    """

    bundles: tuple[Path, ...]
    targets: tuple[str, ...] = ()
    runs: int = 3
    rounds: int = 5
    warm_ups: int = 1
    threads: int | None = None
    student: Path | None = None
    remote: str | None = None
    prompts: Path | None = None
    pictures: int = 4
    score: int = 0
    clip: Path | None = None

    def __post_init__(self) -> None:
        complaints = [
            Complaint(f"--{name.replace('_', '-')}", "wrong", "1 or more", str(getattr(self, name)))
            for name in ("runs", "rounds", "pictures")
            if getattr(self, name) < 1
        ]
        if self.remote is not None and "{command}" not in self.remote:
            complaints.append(Complaint("--remote", "wrong", "a command with {command} in it", self.remote))
        if not self.bundles:
            complaints.append(Complaint("BUNDLE", "none given"))
        for name, asked in (("prompts", self.prompts), ("score", self.score), ("clip", self.clip)):
            if asked and self.student is None:
                complaints.append(Complaint(f"--{name}", "pictures are judged beside the student's", "--student too"))
        if complaints:
            raise InputError("The benchmark cannot be run.", complaints)
