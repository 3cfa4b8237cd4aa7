"""What a step is made from, and the networks that take part in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor, nn

from distillation.flow import Velocity
from distillation.objectives.heads import Heads
from exporters.errors import Complaint, InputError

__all__ = ["Batch", "Batches", "Networks", "stream"]


@dataclass(frozen=True)
class Batch:
    """One process's part of a step's samples. What a stage does not need may be absent.

    Attributes:
        noise: the student's starting states, ``[batch, ...]``; also says the shape of a sample.
        cond: what student and fake model are told; whatever the networks take.
        teacher_cond: what the teacher is told; ``cond`` where absent.
        uncond: what the teacher is told for guidance.
        x0: clean data, ``[batch, ...]``, for teachers and heads.
        states: the teacher's states at the student's levels, ``[batch, steps + 1, ...]``.
        samples: global numbers of the samples in the step; from 0 where absent.

    Raises:
        InputError: the parts are not of as many samples, or of one shape, or hold NaN or infinity.
    """

    noise: Tensor
    cond: Any = None
    teacher_cond: Any = None
    uncond: Any = None
    x0: Tensor | None = None
    states: Tensor | None = None
    samples: Sequence[int] = field(default=())

    def __post_init__(self) -> None:
        sample = self.noise.shape[1:] if self.noise.numel() else None  # stages that draw nothing have no starting states
        parts = {"noise": (self.noise, sample), "x0": (self.x0, sample)}
        if self.states is not None:
            parts["states"] = (self.states[:, 0], sample)
        complaints = []
        for name, (part, shape) in parts.items():
            if part is None:
                continue
            wanted = (len(self.noise), *(part.shape[1:] if shape is None else shape))
            if tuple(part.shape) != wanted:
                complaints.append(
                    Complaint(name, "another shape than the starting states'", str(list(wanted)), str(list(part.shape)))
                )
            elif not bool(part.isfinite().all()):
                complaints.append(Complaint(name, "holds NaN or infinity"))
        if self.samples and len(self.samples) != len(self.noise):
            complaints.append(Complaint("samples", "numbers", str(len(self.noise)), str(len(self.samples))))
        if complaints:
            raise InputError("A batch cannot be learned from.", complaints, "look at what the loader yields")

    @classmethod
    def of(cls, content: Batch | Tensor | Mapping[str, Any]) -> Batch:
        """A batch from what a loader yields: itself, starting states alone, or a mapping of the names above.

        Raises:
            InputError: it is none of them.
        """
        if isinstance(content, Batch):
            return content
        if isinstance(content, Tensor):
            return cls(content)
        names = {entry.name for entry in fields(cls)}
        if not isinstance(content, Mapping) or not {"noise"} <= content.keys() <= names:
            got = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
            raise InputError(
                f"A batch is a Batch, a tensor of starting states, or a mapping of {', '.join(sorted(names))}; got {got}."
            )
        return cls(**content)

    def to(self, like: Tensor) -> Batch:
        """Its tensors on the device of another, which is in fp32 as they are."""
        x0, states = (None if part is None else part.to(like) for part in (self.x0, self.states))
        return replace(self, noise=self.noise.to(like), x0=x0, states=states)

    @property
    def numbers(self) -> Sequence[int]:
        """The samples' global numbers."""
        return self.samples or range(len(self.noise))

    def clean(self, stage: str) -> Tensor:
        """The clean data, for a stage that learns from some.

        Raises:
            InputError: there is none.
        """
        if self.x0 is None:
            raise InputError(f"stage {stage} learns from clean data, and its batches carry none (x0).")
        return self.x0

    @property
    def told_teacher(self) -> Any:
        """The teacher's conditioning."""
        return self.cond if self.teacher_cond is None else self.teacher_cond


Batches = Callable[[int], Batch | Tensor | Mapping[str, Any]] | Iterable[Batch | Tensor | Mapping[str, Any]]


def stream(batches: Batches, first: int, last: int) -> Iterator[tuple[int, Batch]]:
    """Steps and their batches: a function of the step, or one after another from an iterable that begins at the first."""
    if callable(batches):
        for step in range(first, last):
            yield step, Batch.of(batches(step))
    else:
        for step, content in zip(range(first, last), batches, strict=False):
            yield step, Batch.of(content)


@dataclass
class Networks:
    """Who takes part in a stage: all are ``(x, t, cond) -> v``.

    Attributes:
        student: learns; in a stage of kind ``flow`` it is the teacher to be.
        teacher: frozen.
        fake: learns the student's law; may be any velocity where a stage makes no steps of it.
        features: the fake model's features, ``(x, t, cond) -> [[batch, tokens, width], ...]``, for heads.
        heads: learn to tell real features from the student's.
    """

    student: nn.Module
    teacher: Velocity | None = None
    fake: Velocity | None = None
    features: Callable[[Tensor, Tensor, Any], Sequence[Tensor]] | None = None
    heads: Heads | None = None
