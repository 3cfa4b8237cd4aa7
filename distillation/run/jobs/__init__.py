"""What each kind of stage needs to run: its networks, its batches, what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distillation.run.jobs.job import Job, Site
from distillation.run.jobs.pretraining import autoencoder_job, teacher_job, text_job
from distillation.run.jobs.students import decoder_job, merge_job, quantize_job, student_job
from distillation.stages import (
    AnyStage,
    DecoderStage,
    FlowStage,
    MatchStage,
    MergeStage,
    QuantizeStage,
    TextStage,
    TrajectoryStage,
    VaeStage,
)

__all__ = ["Job", "Site", "job_of"]


_JOBS: dict[type[AnyStage], Callable[[Any, Site], Job]] = {
    TextStage: text_job,
    VaeStage: autoencoder_job,
    FlowStage: teacher_job,
    TrajectoryStage: student_job,
    MatchStage: student_job,
    MergeStage: merge_job,
    QuantizeStage: quantize_job,
    DecoderStage: decoder_job,
}


def job_of(stage: AnyStage, site: Site) -> Job:
    """What a stage needs, taken from what the stages before it left.

    Raises:
        InputError: something that it needs is not there.
    """
    return _JOBS[type(stage)](stage, site)
