from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.forecast.cost import GraphCost, Operator, Work
from benchmarks.forecast.roofline import Efficiency, Place, Processor, known_efficiencies, predict
from benchmarks.studies.roofline.fit import Check, Counted, Sample, fit, leave_one_out, predicted_seconds
from benchmarks.studies.roofline.fit import actual_over_predicted as measured_range
from benchmarks.studies.roofline.published import ANCHORS, actual_over_predicted, network_flops, share_of

SHARES = Efficiency(
    source="by hand",
    product={"fp32": 0.5, "blocks8": 0.25},
    attention=0.4,
    convolution=0.2,
    weights=0.5,
    activations=2.0,
    overhead_us=10,
    runs_as={"blocks8": "int8"},
    actual_over_predicted=(0.5, 2.0),
)
CHIP = Processor(description="a chip", peak_gflops={"fp32": 100, "int8": 400}, bandwidth_gb_s=10)
PLACE = Place(CHIP, SHARES)


def operator(group: str, flops: int = 0, weights: int = 0, activations: int = 0, arithmetic: str = "fp32") -> Operator:
    work = Work(group, flops // 2, 0, weights, activations)  # type: ignore[arg-type]
    return Operator("Op", "", work, arithmetic, "fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("op", "seconds", "bound"),
    [
        (operator("product", 10**10), 10**10 / (100e9 * 0.5) + 1e-5, "arithmetic"),
        (operator("product", 10**10, arithmetic="blocks8"), 10**10 / (400e9 * 0.25) + 1e-5, "arithmetic"),
        (operator("attention", 10**10), 10**10 / (100e9 * 0.4) + 1e-5, "arithmetic"),
        (operator("product", 10**6, weights=10**9), 1e9 / (10e9 * 0.5) + 1e-5, "bandwidth"),
        (operator("movement", activations=10**9), 1e9 / (10e9 * 2.0) + 1e-5, "bandwidth"),
        (operator("movement", activations=10), 10 / 20e9 + 1e-5, "overhead"),
        (operator("view"), 0.0, "overhead"),
    ],
)
def test_the_slowest_of_arithmetic_and_bandwidth(op: Operator, seconds: float, bound: str) -> None:
    time = predict(GraphCost("g", (op,)), {"chip": PLACE})
    assert (time.seconds, time.operators[0].bound) == (pytest.approx(seconds), bound)


def test_rounding_comes_beside_the_arithmetic_of_blocks() -> None:
    slow = Place(CHIP, Efficiency(**{**{f: getattr(SHARES, f) for f in SHARES.__struct_fields__}, "rounding": 0.1}))
    op = operator("product", 10**10, activations=10**8, arithmetic="blocks8")
    assert slow.seconds(op.work, "blocks8", 400)[0] == pytest.approx(10**10 / 100e9 + 1e8 / (10e9 * 0.1) + 1e-5)
    assert slow.seconds(op.work, "fp32", 100)[0] == pytest.approx(10**10 / 50e9 + 1e-5)


def test_an_operator_goes_to_the_first_place_that_runs_it() -> None:
    engine = Place(Processor(description="fp16 only", peak_gflops={"fp16": 1000}, bandwidth_gb_s=10), SHARES, lacks=("Odd",))
    half = Operator("Op", "", Work("product", 10**9), "fp16", "fp16")
    operators = (half, replace(half, kind="Odd", dtype="fp32"), operator("product", 100), replace(half, dtype="integer"))
    time = predict(GraphCost("g", operators), {"engine": engine, "cpu": PLACE})
    assert [o.processor for o in time.operators] == ["engine", "cpu", "cpu", "engine"]
    assert time.placed == {"engine": 2, "cpu": 2}
    assert sum(time.placement.values()) == pytest.approx(1)
    assert sum(time.bounds.values()) == pytest.approx(1)


def samples(truth: Efficiency, noise: float = 0.0) -> list[Counted]:
    """Graphs of three students whose times are what ``truth`` says, but for noise."""
    rng, counted = np.random.default_rng(0), []
    for i, student in enumerate(("a", "b", "c")):
        for j in range(4):
            size = 2.0 ** (3 * i + j)
            mix = Counter(
                {
                    operator("product", int(10**8 * size * (1 + j))): 3,
                    operator("product", int(10**8 * size * (4 - j)), 0, int(10**5 * size), "blocks8"): 3,
                    operator("attention", int(10**8 * size)): 1 + j % 2,
                    operator("convolution", int(10**8 * size)): 1 + j // 2,
                    operator("product", 10, weights=int(10**7 * size)): 1 + i,
                    operator("movement", activations=int(10**7 * size)): 4,
                }
            )
            graph = Counted(Sample(student, student, f"g{j}", "t", 1, 1.0, ""), mix)
            seconds = predicted_seconds(graph, Place(CHIP, truth)) * math.exp(noise * rng.standard_normal())
            counted.append(Counted(Sample(student, student, f"g{j}", "t", 1, seconds, ""), mix))
    return counted


TRUTH = Efficiency(
    source="",
    product={"fp32": 0.8, "blocks8": 0.5},
    attention=0.4,
    convolution=0.6,
    weights=0.5,
    activations=1.2,
    rounding=0.1,
    overhead_us=3,
    runs_as={"blocks8": "int8"},
    actual_over_predicted=(1, 1),
)


def test_the_fit_finds_the_shares_that_made_the_samples() -> None:
    fitted = fit(samples(TRUTH), CHIP, TRUTH.runs_as)
    assert fitted.product["fp32"] == pytest.approx(0.8, rel=0.05)
    assert fitted.attention == pytest.approx(0.4, rel=0.1)
    checks = leave_one_out(samples(TRUTH), CHIP, TRUTH.runs_as)
    assert len(checks) == 12
    assert all(check.ratio == pytest.approx(1, abs=0.1) for check in checks)


def test_leaving_out_shows_what_a_fit_hides() -> None:
    """One student whose machine was three times slower: forecasts of it, and their range, must say so."""
    slowed = [
        Counted(Sample("c", "c", c.sample.graph, "t", 1, 3 * c.sample.cpu_seconds, ""), c.operators)
        if c.sample.student == "c"
        else c
        for c in samples(TRUTH)
    ]
    checks = leave_one_out(slowed, CHIP, TRUTH.runs_as)
    assert all(check.ratio < 0.5 for check in checks if check.student == "c")
    assert measured_range(checks)[1] > 2


def test_short_graphs_do_not_make_the_range() -> None:
    checks = [Check("a", "a", "g", 0.01, 0.011)] * 9 + [Check("a", "a", "g", 1e-4, 1e-3)]
    assert measured_range(checks) == pytest.approx((1 / 1.1, 1.1))


def test_torch_counts_anchors_as_published() -> None:
    """Stable Diffusion XL's UNet at 1024 px takes about 6 TFLOP; SD3.5-Medium's transformer at 512 px with 154 tokens 2.138."""
    assert network_flops("sdxl", 1024) == pytest.approx(6e12, rel=0.15)
    assert network_flops("sd3.5-medium", 512) == pytest.approx(2.1378e12, rel=0.005)


def test_efficiencies_are_what_the_anchors_say() -> None:
    """The file is the command's; and an anchor that only checks has no part in the share."""
    for kind in ("neural-engine", "apple-gpu", "nvidia-gpu"):
        efficiency = known_efficiencies()[kind]
        assert efficiency.product["any"] == pytest.approx(share_of(kind), rel=0.01)
        assert efficiency.actual_over_predicted == pytest.approx(actual_over_predicted(kind), abs=0.01)
    fits = [a for a in ANCHORS if a.kind == "neural-engine" and a.fits]
    assert share_of("neural-engine", fits[0]) != share_of("neural-engine")
    checks = [a for a in ANCHORS if a.kind == "neural-engine" and not a.fits]
    assert all(share_of("neural-engine", a) == share_of("neural-engine") for a in checks)
