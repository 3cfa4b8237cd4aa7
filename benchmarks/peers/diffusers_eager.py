"""Diffusers as it is, in torch: the reference in fp32, and bf16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.peers.peer import Job
from exporters.student.student import Student


@dataclass(frozen=True)
class DiffusersEager:
    """``StableDiffusion3Pipeline`` with all components in one type."""

    dtype: Literal["float32", "bfloat16"]
    packages: tuple[str, ...] = ("torch", "diffusers", "transformers")
    kept_t5: bool = True
    has_files: bool = False

    def prepare(self, job: Job, student: Student) -> None:
        """Nothing to do."""

    def open(self, job: Job, student: Student) -> Any:
        """The whole pipeline in memory."""
        import torch

        from exporters.reference.diffusers import reference_pipeline

        if job.threads is not None:
            torch.set_num_threads(job.threads)
        pipeline = reference_pipeline(student, job.keep_t5)
        return pipeline if self.dtype == "float32" else pipeline.to(getattr(torch, self.dtype))
