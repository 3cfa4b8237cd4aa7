from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from exporters.onnx.memory import live_bytes, memory_bytes
from exporters.onnx.writer import stored_bytes
from tests.helpers.onnx_graphs import graph_of, quantize

WEIGHT = np.ones((64, 128), np.float32)
SPEC = SimpleNamespace(name="denoiser", largest_activation=1000, bands=1)
ACTIVATIONS = 5 * 4 * 1000  # five results of the largest size are alive at once in a denoiser, of 1000 numbers in fp32 each
INT8, SCALES = 64 * 128, 4 * 64 * 128 // 32  # bytes of codes, and of a scale for each 32 of them


@pytest.mark.parametrize(
    ("scheme", "held"),
    [
        ("int8", 1.1 * 4 * INT8 + 64 * 4),  # cast to fp32 when the session is made, a tenth of it twice; a scale for each row
        ("w8a8", INT8 + 64 * 4),
        ("int8g32", INT8 + SCALES),
        ("int4g32", 1.25 * (INT8 / 2 + SCALES)),  # scales and sums of blocks are unpacked
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


def test_bands_of_a_vae_take_less_the_more_there_are() -> None:
    specs = [SimpleNamespace(name="vae_decoder", largest_activation=1000, bands=count) for count in (1, 8, 16, 64)]
    live = [live_bytes(spec) for spec in specs]  # type: ignore[arg-type]
    assert live == [40000, 26800, 20800, 16300]
    encoder = SimpleNamespace(name="vae_encoder", largest_activation=1000, bands=16)
    assert live_bytes(encoder) < live[2]  # type: ignore[arg-type]
