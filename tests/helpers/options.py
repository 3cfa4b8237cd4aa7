"""Options of small graphs."""

from __future__ import annotations

from exporters.layouts.sampling import Sampling, plan_sampling
from exporters.layouts.schedule import Schedule
from exporters.layouts.spec import GraphOptions
from exporters.student.student import Student


def options_of(student: Student, height: int = 64, width: int = 64, keep_t5: bool = False) -> tuple[GraphOptions, Sampling]:
    sampling = plan_sampling(student, height, width, Schedule(None if student.defaults.steps else 2))
    tokens = student.configs["text_encoder"]["max_position_embeddings"]
    return GraphOptions("native", height, width, sampling.timesteps, tokens, keep_t5, 16), sampling
