"""Who is to blame for what 16 bits lose, and that someone is blamed only when something is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.coreml.evaluate import Audit, Program, compare, evaluate, open_package
from exporters.coreml.evaluate.comparison import _ratio
from exporters.coreml.evaluate.run import Run
from exporters.errors import ExportError
from exporters.reference.decibels import snr_db
from tests.helpers.packages import built, mb

REQUIRED_DB = {"fp32": 100.0, "fp16": 50.0}

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 64)).astype(np.float32)
WEIGHT = RNG.standard_normal((64, 64)).astype(np.float32)


def rms_norm(x: Any) -> Any:
    """``x / sqrt(mean(x^2) + epsilon)`` as it is written naively, of a linear layer's result."""
    hidden = mb.linear(x=x, weight=WEIGHT, name="hidden")
    squares = mb.square(x=hidden, name="squares")
    mean = mb.reduce_mean(x=squares, axes=[-1], keep_dims=True, name="mean")
    return mb.mul(x=hidden, y=mb.rsqrt(x=mb.add(x=mean, y=1e-6), name="inverse"), name="normed")


def centred(x: Any) -> Any:
    """A mean taken off of values that it dwarfs."""
    raised = mb.add(x=x, y=500.0, name="raised")
    return mb.sub(x=raised, y=mb.reduce_mean(x=raised, axes=[-1], keep_dims=True, name="mean"), name="centred")


@pytest.fixture
def norm(tmp_path: Path) -> Program:
    return open_package(built(tmp_path / "norm.mlpackage", rms_norm, {"x": X}, "iOS18", "fp16"))


def test_nothing_is_lost_where_numbers_are_small(norm: Program) -> None:
    comparison = compare(norm, {"x": X})
    assert comparison.first is None
    assert comparison.outputs_db.keys() == {"normed"}
    assert REQUIRED_DB["fp16"] < comparison.outputs_db["normed"] < 80  # rounded: 66 dB at worst, some 74 on average


@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_squares_that_overflow(norm: Program, scale: float) -> None:
    """|hidden| is about 8 * scale, of which fp16 holds the square up to 256 only."""
    comparison = compare(norm, {"x": X * np.float32(scale)})
    first = comparison.first
    assert first is not None
    assert (first.kind, first.after_db) == ("square", -np.inf)
    assert first.name.startswith("squares")
    assert first.nonfinite > 0
    assert first.before_db > 60
    assert len(comparison.findings) == 1  # what is made of it is not to blame
    assert f"square {first.name!r}: " in str(first)
    assert f"{first.nonfinite} values are no longer finite" in str(first)


def test_squares_that_vanish(norm: Program) -> None:
    """All stays finite: |hidden| is about 8e-5, its square 6e-9, and fp16 ends at 6e-8."""
    inputs = {"x": X * np.float32(1e-5)}
    first = compare(norm, inputs).first
    assert first is not None
    assert (first.kind, first.nonfinite) == ("square", 0)
    audit = Audit()
    evaluate(norm, inputs, "fp16", audit)
    assert audit.first_nonfinite is None


def test_sums_that_cancel(tmp_path: Path) -> None:
    """At 500 fp16 counts in steps of 1/4: rounding leaves errors of 1/4 / sqrt(12) in values of 1, that is 22.8 dB.

    The mean's rounding costs at most half a step: with it the errors are at most 1/4 * sqrt(1/12 + 1/4), 16.8 dB.
    """
    program = open_package(built(tmp_path / "m.mlpackage", centred, {"x": X}, "iOS18", "fp16"))
    comparison = compare(program, {"x": X})
    assert [finding.kind for finding in comparison.findings] == ["sub"]
    assert comparison.first is not None
    assert 16.8 < comparison.first.after_db < 22.8
    assert compare(program, {"x": X}, drop_db=50).first is None


def test_a_mask_of_minus_infinity_is_no_loss(tmp_path: Path) -> None:
    keep = np.tril(np.ones((6, 6), bool))

    def build(x: Any) -> Any:
        scores = mb.matmul(x=x, y=x, transpose_y=True)
        return mb.softmax(x=mb.add(x=scores, y=np.where(keep, 0, -np.inf).astype(np.float32)))

    program = open_package(built(tmp_path / "m.mlpackage", build, {"x": X}, "iOS18", "fp16"))
    audit = Audit()
    got = evaluate(program, {"x": X / 8}, "fp16", audit).popitem()[1]
    assert compare(program, {"x": X / 8}).first is None
    assert np.array_equal(got > 0, keep)
    first = audit.first_nonfinite
    assert first is not None
    assert (first.kind, first.nonfinite) == ("add", 15)


def test_a_row_that_is_masked_altogether_is_no_number(tmp_path: Path) -> None:
    tokens = RNG.standard_normal((1, 2, 3, 4)).astype(np.float32)
    keep = np.array([[True, True, True], [False, False, False], [True, False, False]])

    def build(x: Any) -> Any:
        return mb.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=keep)

    program = open_package(built(tmp_path / "m.mlpackage", build, {"x": tokens}, "iOS18"))
    got = evaluate(program, {"x": tokens}, "fp32").popitem()[1]
    assert np.isnan(got).all(-1).tolist() == [[[False, True, False]] * 2]
    with pytest.raises(ExportError, match="8 of 24 values of the result are NaN"):
        snr_db(np.zeros_like(got), got)


def test_audit_by_hand(norm: Program) -> None:
    audit = Audit()
    x = np.zeros((6, 64), np.float32)
    x[0, 0] = 100
    evaluate(norm, {"x": x}, "fp32", audit)
    hidden = 100 * np.abs(WEIGHT[:, 0].astype(np.float16).astype(np.float32)).max()
    by_kind = {record.kind: record for record in audit.records}
    assert by_kind["linear"].amax == pytest.approx(hidden, rel=1e-6)
    assert by_kind["square"].amax == pytest.approx(hidden**2, rel=1e-6)
    assert audit.first_nonfinite is None
    assert audit.largest == by_kind["square"]


def test_precisions_round_what_they_say(tmp_path: Path) -> None:
    """In fp32 a third survives three fp16 operations; in fp16 each of them rounds."""
    third = np.full((1, 1), 1 / 3, np.float32)
    build = lambda x: mb.add(x=mb.mul(x=x, y=np.float32(1.0)), y=np.float32(4096.0), name="raised")  # noqa: E731
    program = open_package(built(tmp_path / "m.mlpackage", build, {"x": third}, "iOS18", "fp16"))
    assert evaluate(program, {"x": third}, "fp32")["raised"] == np.float32(4096 + 1 / 3)
    assert evaluate(program, {"x": third}, "fp16")["raised"] == 4096  # fp16 counts in fours there


def test_sums_are_accumulated_in_32_bits(tmp_path: Path) -> None:
    """4096 + 64 ones: added one by one in fp16 each would be lost."""
    ones = np.ones((1, 65), np.float32)
    weight = np.concatenate([np.full((1, 1), 4096, np.float32), np.ones((1, 64), np.float32)], 1)
    program = open_package(built(tmp_path / "m.mlpackage", lambda x: mb.linear(x=x, weight=weight), {"x": ones}, "iOS18", "fp16"))
    assert evaluate(program, {"x": ones}, "fp16").popitem()[1] == 4160


def test_values_go_after_their_last_use(tmp_path: Path) -> None:
    """Of a chain of ten operations no more than an argument and a result are alive, and of the weights none."""

    def build(x: Any) -> Any:
        for _ in range(10):
            x = mb.relu(x=mb.linear(x=x, weight=WEIGHT))
        return x

    run = Run(open_package(built(tmp_path / "m.mlpackage", build, {"x": X}, "iOS18", "fp16")), {"x": X}, "fp16")
    alive = [len(run._values) for _ in run]
    assert max(alive) == 2
    assert set(run._values) == set(run.outputs())


def test_ratios_by_hand() -> None:
    ones, inf, nan = torch.ones(4), float("inf"), float("nan")
    assert _ratio(ones, ones * 1.1)[0] == pytest.approx(20, abs=1e-5)
    assert _ratio(ones, ones) == (inf, 0)
    assert _ratio(ones * 0, ones) == (-inf, 0)
    assert _ratio(torch.tensor([1.0, inf, nan]), torch.tensor([1.0, inf, nan])) == (inf, 0)
    assert _ratio(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, inf, nan])) == (-inf, 2)
    assert _ratio(torch.tensor([1.0, -inf]), torch.tensor([1.0, 5.0])) == (-inf, 0)
    assert _ratio(torch.tensor([3, 4]), torch.tensor([3, 5]))[0] == pytest.approx(10 * np.log10(25))


def test_the_comparison_with_torch_can_fail(tmp_path: Path) -> None:
    """One weight in four thousand off by one: 40 dB and more are lost."""
    path = built(tmp_path / "m.mlpackage", lambda x: mb.linear(x=x, weight=WEIGHT), {"x": X}, "iOS18", "fp32")
    expected = X.astype(np.float64) @ WEIGHT.T
    assert snr_db(expected, evaluate(open_package(path), {"x": X}, "fp32").popitem()[1]) >= REQUIRED_DB["fp32"]
    file = path / "Data/com.apple.CoreML/weights/weight.bin"
    content = file.read_bytes()
    place = content.index(WEIGHT.tobytes())
    file.write_bytes(content[:place] + np.float32(WEIGHT[0, 0] + 1).tobytes() + content[place + 4 :])
    assert snr_db(expected, evaluate(open_package(path), {"x": X}, "fp32").popitem()[1]) < REQUIRED_DB["fp16"]
