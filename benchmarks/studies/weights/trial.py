"""What trials of weights share: a student ready to draw, and its sensitivities."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distillation.shape_world import sample_captions
from exporters.layouts.sampling import Sampling, plan_sampling
from exporters.layouts.spec import GraphOptions
from exporters.streamed.calibrate import CalibrationPlan, calibrate
from exporters.streamed.module import Streaming
from exporters.streamed.pipeline import TorchPipeline
from exporters.student.student import Student
from quantization.calibration import Key
from quantization.sensitivity import Sensitivity

CALIBRATION_SEED, TEST_SEED = 11, 7


@dataclass(frozen=True)
class Trial:
    """A student at one size.

    Attributes:
        student: the student.
        options: what shapes its graphs.
        sampling: its schedule.
    """

    student: Student
    options: GraphOptions
    sampling: Sampling

    @classmethod
    def of(cls, student: Student, pixels: int, *, keep_t5: bool = False) -> Trial:
        """At ``pixels`` x ``pixels``, in the student's own number of steps, without T5 unless it is kept."""
        sampling = plan_sampling(student, pixels, pixels)
        tokens = student.configs["text_encoder"]["max_position_embeddings"]
        length = student.defaults.max_sequence_length
        return cls(
            student,
            GraphOptions(
                layout="native",
                height=pixels,
                width=pixels,
                timesteps=sampling.timesteps,
                clip_tokens=tokens,
                keep_t5=keep_t5,
                max_sequence_length=length,
            ),
            sampling,
        )

    def pipeline(self, streaming: Streaming | None = None) -> TorchPipeline:
        """The student in torch."""
        return TorchPipeline(self.student, self.options, self.sampling, streaming)

    def products(self, captions: Sequence[str], wanted: Callable[[str], bool] = lambda name: True) -> dict[Key, Sensitivity]:
        """The sensitivities of the transformer's products of wanted names, calibrated on captions."""
        with tempfile.TemporaryDirectory() as folder:
            calibration = calibrate(self.student, self.options, self.sampling, CalibrationPlan(tuple(captions)), Path(folder))
            keys = [key for key in calibration.weights() if key[0] == "transformer" and wanted(key[1])]
            sensitivities = {key: calibration.sensitivity(*key) for key in keys if calibration.entry(*key).layer == "linear"}
            return {
                key: replace(sensitivity, gram=np.array(sensitivity.gram))
                for key, sensitivity in sensitivities.items()
                if sensitivity is not None
            }


def calibration_captions(count: int) -> list[str]:
    """Captions to calibrate on."""
    return [str(caption) for caption in sample_captions(count, CALIBRATION_SEED)]


def unseen_captions(count: int) -> list[str]:
    """Captions that no calibration here has seen."""
    return [str(caption) for caption in sample_captions(count, TEST_SEED)]
