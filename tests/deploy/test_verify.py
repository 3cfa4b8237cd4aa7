from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deploy.bench_request import BenchRequest
from deploy.bundle import Bundle
from deploy.errors import InputError
from deploy.verify import verify


def test_a_lora_beside_the_student_is_refused_unless_told(builtin_bundle: Bundle, tiny_folder: Path) -> None:
    save_file({"x.lora_A.weight": np.ones((2, 2), np.float32)}, tiny_folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match="is a LoRA, which would be left out"):
        verify(builtin_bundle.folder, tiny_folder)
    (complaint,) = verify(builtin_bundle.folder, tiny_folder, ignore_lora=True).complaints
    assert complaint.what == "the bundle was made of another student"


def test_bench_opens_the_student_as_the_bundle_was_made_of_it(tiny_folder: Path) -> None:
    request = BenchRequest((tiny_folder,), student=tiny_folder, variant="fp16", ignore_lora=True)
    kept, dropped = request.source(keep_t5=True), request.source(keep_t5=False)
    assert kept is not None
    assert dropped is not None
    assert (kept.without, dropped.without) == ((), ("text_encoder_3",))
    assert (kept.variant, kept.ignore_lora) == ("fp16", True)
    assert BenchRequest((tiny_folder,)).source(keep_t5=True) is None
