"""What trials of weights share: a student ready to draw, its sensitivities, and codes that make use of a part of them only."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
from quantization.codecs.integer import decode_integer, encode_integer
from quantization.codecs.lookup import decode_lookup, encode_lookup
from quantization.schemes import Scheme
from quantization.sensitivity import Sensitivity

CALIBRATION_SEED, TEST_SEED = 11, 7


@dataclass(frozen=True)
class Trial:
    """A student without T5 at one size.

    Attributes:
        student: the student.
        options: what shapes its graphs.
        sampling: its schedule.
    """

    student: Student
    options: GraphOptions
    sampling: Sampling

    @classmethod
    def of(cls, student: Student, pixels: int) -> Trial:
        """At ``pixels`` x ``pixels``, in the student's own number of steps."""
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
                keep_t5=False,
                max_sequence_length=length,
            ),
            sampling,
        )

    def pipeline(self, streaming: Streaming | None = None) -> TorchPipeline:
        """The student in torch."""
        return TorchPipeline(self.student, self.options, self.sampling, streaming)

    def products(self, prompts: int, wanted: Callable[[str], bool] = lambda name: True) -> dict[Key, Sensitivity]:
        """The sensitivities of the transformer's products of wanted names, calibrated on so many captions."""
        with tempfile.TemporaryDirectory() as folder:
            captions = tuple(str(caption) for caption in sample_captions(prompts, CALIBRATION_SEED))
            calibration = calibrate(self.student, self.options, self.sampling, CalibrationPlan(captions), Path(folder))
            keys = [key for key in calibration.weights() if key[0] == "transformer" and wanted(key[1])]
            sensitivities = {key: calibration.sensitivity(*key) for key in keys if calibration.entry(*key).layer == "linear"}
            return {
                key: replace(sensitivity, gram=np.array(sensitivity.gram))
                for key, sensitivity in sensitivities.items()
                if sensitivity is not None
            }


def unseen_captions(count: int) -> list[str]:
    """Captions that no calibration here has seen."""
    return [str(caption) for caption in sample_captions(count, TEST_SEED)]


def weighted_by_importance(weight: np.ndarray, scheme: Scheme, sensitivity: Sensitivity) -> np.ndarray:
    """The weight that a scheme stores when its scales or tables know what is important, and nothing else is known."""
    rows, columns = sensitivity.importance()
    if scheme.kind == "lookup":
        return decode_lookup(encode_lookup(weight, scheme, "weight", rows[:, None] * columns))
    return decode_integer(encode_integer(weight, scheme, "weight", columns))
