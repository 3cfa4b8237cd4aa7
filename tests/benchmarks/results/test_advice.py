from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.quality.pictures import PictureQuality, Quality
from benchmarks.results.advice import Forecast, TierLimits, advise, lead
from benchmarks.results.record import Entry, Facts, Measured, PictureResult, Series
from deploy.bench.advice import advice_tiers
from deploy.bench.targets import TARGETS
from deploy.tiers.tier import all_tiers

PHONE = TierLimits("phone", "a phone", 100, 50, {"onnx": ("int8", "fp16"), "coreml": ("lut6",)}, ("coreml",))
DESK = TierLimits("desk", "a desktop", 1000, 500, {"onnx": ("int8", "fp16", "fp32")}, ("onnxruntime-cpu",))
NOTHING = Series(wall_ms=(), cpu_ms=())


def entry(name: str, median_ms: float, size: int, psnr_db: float | None, **changes: Any) -> Entry:
    """A bundle measured in five rounds of two runs, one percent apart."""
    wall = tuple(median_ms * (1 + i / 1000) for i in range(10))
    picture = PictureResult(first=NOTHING, warm=Series(wall_ms=wall, cpu_ms=wall), peak_memory_bytes=changes.pop("memory", 60))
    facts = Facts(
        tier="t",
        model_format=changes.pop("form", "onnx"),
        schemes=changes.pop("schemes", ("int8",)),
        height=64,
        width=64,
        steps=4,
    )
    quality = None
    if psnr_db is not None:
        lost = changes.pop("lost", 0)
        pictures = [
            PictureQuality(prompt="p", seed=i, psnr_db=psnr_db, ssim=1.0, right=i >= lost, reference_right=True)
            for i in range(20)
        ]
        quality = Quality(reference="r", pictures=tuple(pictures))
    measured = Measured(runtime="r", graphs={}, picture=picture, memory_method="m", metadata={"device": "this CPU"})
    target = changes.pop("target", "onnxruntime-cpu")
    return Entry(
        bundle=name,
        fingerprint="f",
        target=target,
        bytes_on_disk=size,
        graph_bytes={},
        facts=facts,
        measured=measured,
        quality=quality,
        **changes,
    )


FAST, SLOW, SMALL = entry("fast", 100, 40, 45.0), entry("slow", 200, 45, 60.0), entry("small", 100.5, 20, 41.0)
BLURRED, WIDE = entry("blurred", 50, 10, 30.0), entry("wide", 90, 200, 80.0, schemes=("fp32",))
WRONG = entry("wrong", 50, 10, 45.0, lost=8)

CASES: dict[str, tuple[TierLimits, list[Entry], str | None, str]] = {
    "the fastest": (DESK, [SLOW, FAST], "fast", "it is the fastest"),
    "as fast, the smallest": (DESK, [FAST, SMALL, SLOW], "small", "none is faster by more than noise"),
    "what blurs is out": (DESK, [BLURRED, FAST], "fast", "it alone fits"),
    "what draws wrong things is out": (DESK, [WRONG, SLOW], "slow", "it alone fits"),
    "if all blur, the closest": (DESK, [BLURRED], "blurred", "yet not the same pictures"),
    "without quality it is said": (DESK, [entry("bare", 100, 40, None)], "bare", "give --student"),
    "too large to download": (PHONE, [entry("large", 50, 51, 60.0), SLOW], "slow", "it alone fits"),
    "too much memory": (PHONE, [entry("hungry", 50, 40, 60.0, memory=101), SLOW], "slow", "it alone fits"),
    "a scheme that it cannot run": (PHONE, [WIDE], None, "no bundle that was measured fits"),
    "another format": (DESK, [entry("core", 50, 40, 60.0, form="coreml", schemes=("lut6",))], None, "fits"),
    "the real device first": (
        PHONE,
        [FAST, entry("core", 150, 40, 60.0, form="coreml", schemes=("lut6",), target="coreml")],
        "core",
        "on coreml",
    ),
}


@pytest.mark.parametrize(("tier", "entries", "bundle", "why"), CASES.values(), ids=CASES)
def test_what_is_shipped(tier: TierLimits, entries: list[Entry], bundle: str | None, why: str) -> None:
    (advice,) = advise([tier], entries, rounds=5)
    assert advice.bundle == bundle
    assert why in advice.why


def test_why_not_the_others() -> None:
    (advice,) = advise([PHONE], [SLOW, BLURRED, WIDE, WRONG, entry("large", 50, 51, 60.0)], rounds=5)
    assert advice.bundle == "slow"
    told = "; ".join(advice.against)
    for reason in (
        "blurred: mean PSNR 30.0 dB",
        "wide: the tier cannot run fp32",
        "wrong: it draws 0.600 right",
        "large: 0.0 MB",
    ):
        assert reason in told


def test_the_first_paragraph() -> None:
    """One sentence for each bundle, figures and devices in it, and what the figures do not say."""
    advice = advise([PHONE, DESK, replace(PHONE, name="watch", memory_bytes=1)], [FAST], rounds=5)
    text = lead(advice)
    assert text.startswith("Ship fast to desk and phone: ")
    for words in (
        "45.0 dB",
        "100 ms a picture",
        "this CPU",
        "Nothing that was measured here is for watch.",
        "Times for phone are of",
    ):
        assert words in text


def test_forecasts_are_told_and_decide_nothing() -> None:
    predicted = [Forecast("slow", "phone", "coreml", 0.5, 0.25, 1), Forecast("fast", "desk", "cpu", 90, 50, 120)]
    advice = advise([PHONE, DESK], [FAST, SLOW], rounds=5, forecasts=predicted)
    assert [one.bundle for one in advice] == ["fast", "fast"]
    assert [[str(forecast) for forecast in one.predicted] for one in advice] == [
        ["slow on coreml: 500 ms a picture (250 ms to 1.00 s)"],
        ["fast on cpu: 90 s a picture (50 s to 120 s)"],
    ]


def test_tiers_are_known() -> None:
    """Each tier, and what stands for its device: targets that exist."""
    tiers = advice_tiers()
    assert [tier.name for tier in tiers] == list(all_tiers())
    for tier in tiers:
        assert any(name.startswith(tier.targets) for name in TARGETS)
