"""The traced modules, run in torch, against diffusers: every rewrite is exact.

Tolerance. Both sides compute the same real function in fp32, in another order. A sum of n products carries a relative rounding
error of about sqrt(n) 2^-24; through L layers the errors add like sqrt(L). For n = 500 and L = 40 that is 8e-6 of the signal,
102 dB. The design asks for 100 dB; measured here are 120 to 140 dB.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distillation.random_students import PRESETS, make_student
from exporters.layouts.plan import plan_graphs
from exporters.layouts.spec import GraphOptions, GraphSpec
from exporters.reference.decibels import snr_db
from exporters.reference.parity import measure, reference_cases
from exporters.restructure.attention import attention, null_channels, with_null_channels
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers.modules import torch_module
from tests.helpers.student_files import edit_json

STEPS = (1000.0, 900.0, 750.0, 500.0)
OPTIONS = GraphOptions("native", 96, 160, STEPS, clip_tokens=20, keep_t5=False, max_sequence_length=33)


def torch_db(spec: GraphSpec, student: Student, options: GraphOptions, precision: torch.dtype = torch.float32) -> float:
    module = torch_module(spec, precision)

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            out = module(*(torch.from_numpy(inputs[port.name]) for port in spec.inputs))
        return [tensor.numpy() for tensor in (out if isinstance(out, tuple) else (out,))]

    return measure(reference_cases(spec, student, options), run, spec)


@pytest.mark.parametrize("layout", ["native", "optimum"])
@pytest.mark.parametrize("shape", ["tiny", "no qk_norm, no dual", "all dual, bf16"])
def test_every_graph_computes_what_diffusers_computes(shape: str, layout: str, students: dict[str, Student]) -> None:
    student = students[shape]
    for keep_t5 in {False, student.has_t5}:
        options = replace(OPTIONS, layout=layout, keep_t5=keep_t5, dynamic=layout == "optimum")
        for spec in plan_graphs(student, options):
            assert torch_db(spec, student, options) >= 100, (spec.name, keep_t5)


@pytest.mark.parametrize("size", [(16, 16), (16, 192), (192, 48)], ids=str)
def test_dynamic_positions_are_the_fixed_ones(size: tuple[int, int], students: dict[str, Student]) -> None:
    student = students["tiny"]
    options = replace(OPTIONS, height=size[0], width=size[1])
    fixed, dynamic = (torch_module(plan_graphs(student, replace(options, dynamic=d))[2]) for d in (False, True))
    rows, columns = size[0] // 16, size[1] // 16
    assert torch.equal(fixed.positions(rows, columns), dynamic.positions(rows, columns))


def test_fp16_modules_reach_50_db(students: dict[str, Student]) -> None:
    """2^-11 of each operation's result is lost: -66 dB once, some -60 dB after a few layers with an fp32 residual stream."""
    student = students["tiny"]
    options = replace(OPTIONS, keep_t5=True)
    for spec in plan_graphs(student, options):
        assert torch_db(spec, student, options, torch.float16) >= 50, spec.name


@pytest.mark.parametrize("tokens", [1, 2, 16, 77, 256, 512])
def test_folding_null_tokens_is_exact(tokens: int) -> None:
    rng = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 9, 3, 16, generator=rng) for _ in range(3))
    repeated = [torch.cat([x, x[:, -1:].expand(-1, tokens - 1, -1, -1)], dim=1).flatten(2) for x in (key, value)]
    expected = attention(query.flatten(2), *repeated, None, 3, 0.25, False)
    wide_query, wide_key = with_null_channels(query, key, tokens, 0.25)
    folded = attention(wide_query.flatten(2), wide_key.flatten(2), value.flatten(2), None, 3, 0.25, False)
    # A score is a sum of 18 products that passes through values up to log 512 + 4 = 10: it is off by at most sqrt(18) 10 2^-24,
    # and its weight by as much relatively.
    assert snr_db(expected.numpy(), folded.numpy()) >= -20 * np.log10(np.sqrt(18) * 10 * 2.0**-24)
    if tokens > 1:  # the comparison can fail: one plain zero token is not the same as many
        plain = attention(query.flatten(2), key.flatten(2), value.flatten(2), None, 3, 0.25, False)
        assert snr_db(expected.numpy(), plain.numpy()) < 60


@pytest.mark.parametrize("head_dim", [16, 24, 64, 80])
@pytest.mark.parametrize("tokens", [2, 77, 256, 333])
def test_null_channels_survive_fp16(tokens: int, head_dim: int) -> None:
    scale = head_dim**-0.5
    query, high, low = (float(np.float16(c)) for c in null_channels(tokens, scale))
    assert query == null_channels(tokens, scale)[0]  # a power of two: exact
    # The high part is exact by construction; the low part, below 2^-11 of it, is off by at most 2^-11 of itself.
    assert query * (high + low) * scale == pytest.approx(np.log(tokens), rel=2.0**-20)


def test_t5_in_fp16_survives_activations_that_overflow(tmp_path: Path) -> None:
    """T5-XXL's feed-forward leaves fp16's range; so does this one, with weights to match."""
    from safetensors.numpy import load_file, save_file

    folder = make_student(PRESETS["tiny"], tmp_path / "student")
    file = folder / "text_encoder_3" / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith(("wi_1.weight", "wo.weight")):
            tensors[name] *= 300  # gated activations around 300, wo's outputs around 1e5: beyond 65504
    save_file(tensors, file)
    student = open_student(folder)
    options = replace(OPTIONS, keep_t5=True)
    spec = plan_graphs(student, options)[0]
    wide = reference_cases(spec, student, options)[0].outputs[0]
    assert np.isfinite(wide).all()
    assert torch_db(spec, student, options, torch.float16) >= 50


def test_legacy_end_of_text_is_the_highest_id(tiny_folder: Path) -> None:
    """Configurations from before transformers#24773 say eos_token_id 2 and mean the highest id; SD3's do."""
    for component in ("text_encoder", "text_encoder_2"):
        edit_json(tiny_folder / component / "config.json", eos_token_id=2)
    student = open_student(tiny_folder)
    assert torch_db(plan_graphs(student, OPTIONS)[0], student, OPTIONS) >= 100


def test_last_clip_layer_runs_on_one_token(students: dict[str, Student]) -> None:
    spec = plan_graphs(students["tiny"], OPTIONS)[0]
    encoder = torch_module(spec).text_encoder_2
    sizes = []
    encoder.text_model.encoder.layers[-1].mlp.fc1.register_forward_hook(
        lambda module, inputs, output: sizes.append(output.shape[1])
    )
    encoder(torch.tensor([[698, 5, 6, 699, *[0] * 16]]))
    assert sizes == [1]
