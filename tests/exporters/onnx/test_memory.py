from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from exporters.onnx.memory import FOLDED, UNPACKED_BLOCKS, memory_bytes
from exporters.onnx.writer import stored_bytes
from quantization.schemes import parse_scheme
from tests.helpers.onnx_graphs import graph_of, quantize

WEIGHT = np.ones((64, 128), np.float32)
SPEC = SimpleNamespace(name="denoiser", largest_activation=1000)
ACTIVATIONS = 5 * 4 * 1000


@pytest.mark.parametrize(
    ("scheme", "held"),
    [
        ("int8", FOLDED * WEIGHT.nbytes + 64 * 4),  # cast when the session is made
        ("w8a8", parse_scheme("w8a8").size_bytes(WEIGHT.shape)),
        ("int8g32", parse_scheme("int8g32").size_bytes(WEIGHT.shape)),
        ("int4g32", UNPACKED_BLOCKS * parse_scheme("int4g32").size_bytes(WEIGHT.shape)),
    ],
)
def test_weights_as_they_are_held(scheme: str, held: float) -> None:
    model = graph_of("MatMul", WEIGHT, (2, 128))
    assert memory_bytes(model, SPEC) == WEIGHT.nbytes + ACTIVATIONS
    quantize(model, scheme)
    assert memory_bytes(model, SPEC) - ACTIVATIONS == pytest.approx(held, abs=2)


def test_tables_stay_in_the_file() -> None:
    model = graph_of("Gather", WEIGHT, (2, 3))
    assert stored_bytes(model) == WEIGHT.nbytes
    assert memory_bytes(model, SPEC) == ACTIVATIONS
