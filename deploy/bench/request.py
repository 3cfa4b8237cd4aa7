"""What `bench` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import Complaint, InputError

if TYPE_CHECKING:
    from exporters.student.student import StudentSource
    from exporters.student.weights.lora.source import Lora


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    Attributes:
        bundles: folders.
        targets: names of :data:`deploy.bench.targets.TARGETS`; by default those that run the bundles' formats.
        runs: measured runs of each graph and picture in each round.
        rounds: fresh processes for each bundle and target, interleaved.
        warm_ups: runs before those.
        threads: threads of one operator.
        student: also compare graphs and pictures with this student in diffusers, and measure it where targets ask for it.
        variant: variant of its weight files.
        ignore_lora: do without a LoRA that lies beside them; else such a student is refused.
        lora: LoRAs to merge into its weights, in their order.
        components: of it that come from elsewhere.
        remote: a command with ``{command}`` in it, for a device elsewhere: ``ssh phone {command}``.
        prompts: a file of prompts to compare pictures of; by default the student's own, or prompts of all sorts.
        pictures: how many of them.
        score: how many more pictures the scorer of the student's world judges.
        clip: folder of a CLIP model that scores pictures.
    """

    bundles: tuple[Path, ...]
    targets: tuple[str, ...] = ()
    runs: int = 3
    rounds: int = 5
    warm_ups: int = 1
    threads: int | None = None
    student: Path | None = None
    variant: str | None = None
    ignore_lora: bool = False
    lora: tuple[Lora, ...] = ()
    components: Mapping[str, Path] = field(default_factory=dict)
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
        for name in ("prompts", "score", "clip", "variant", "ignore_lora", "lora", "components"):
            if getattr(self, name) and self.student is None:
                option = f"--{name.replace('_', '-')}"
                complaints.append(Complaint(option, "pictures are judged beside the student's", "--student too"))
        if complaints:
            raise InputError("The benchmark cannot be run.", complaints)

    def source(self, keep_t5: bool) -> StudentSource | None:
        """The student as a bundle with or without T5 was made of it, if one is given."""
        if self.student is None:
            return None
        from exporters.student.open import as_components
        from exporters.student.student import StudentSource
        from exporters.student.weights.templates import OPTIONAL_COMPONENTS

        without = () if keep_t5 else OPTIONAL_COMPONENTS
        return StudentSource(self.student, self.variant, self.ignore_lora, without, self.lora, as_components(self.components))
