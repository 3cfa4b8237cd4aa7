from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from deploy.bench.advice import forecasts
from deploy.bundle.folder import Bundle
from deploy.errors import InputError, TierError
from deploy.forecast.predict import NOTE, costs, predictions
from deploy.forecast.products import ProductTimes
from deploy.forecast.show import as_data, render
from deploy.forecast.targets import check_places, places
from deploy.tiers.read import parse_tiers, tier_data
from deploy.tiers.tier import all_tiers
from quantization.schemes import parse_scheme
from tests.helpers.command import flash_deploy

TEXT = resources.files("deploy.tiers").joinpath("tiers.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('efficiency = "nvidia-gpu"', 'efficiency = "wishes"', r"no such efficiency.*got wishes"),
        ('processor = "rtx-4090"', 'processor = "rtx-9999"', r"no such processor.*got rtx-9999"),
        ("peak_gflops = { fp16 = 17_500 }", "peak_gflops = { fp16 = -1 }", r"Expected `float` > 0"),
        ("peak_gflops = { fp16 = 17_500 }", "peak_gflops = { fp8 = 1 }", r"Invalid enum value 'fp8'"),
        ("bandwidth_gb_s = 1_008", "bandwith_gb_s = 1_008", r"unknown field `bandwith_gb_s`|missing required field"),
        ("only_mixed = true", "only_mixd = true", r"unknown field `only_mixd`"),
        ("[phone]", "[phone", r"cannot be read"),
    ],
)
def test_a_tiers_file_that_is_wrong(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(TierError, match=message):
        check_places(parse_tiers(TEXT.replace(old, new)))


def test_every_tier_has_a_target_for_each_of_its_formats() -> None:
    for name, tier in all_tiers().items():
        for model_format in tier.formats:
            assert any(target.format == model_format for target in tier.targets.values()), name
        for target in tier.targets.values():
            assert places(target)
            assert places(target, run_once=True)


def test_each_peak_has_its_source_beside_it() -> None:
    section = TEXT[TEXT.index("[processors.") :]
    for name, text in re.findall(r"\[processors\.([\w-]+)\]\n(.*?)(?=\n\[|\Z)", section, re.DOTALL):
        assert "#" in text, name
    assert set(re.findall(r"\[processors\.([\w-]+)\]", section)) == tier_data().processors.keys()


def test_a_bundle_on_its_own_tier(builtin_bundle: Bundle) -> None:
    counted = costs(builtin_bundle)
    (prediction,) = predictions(builtin_bundle)  # fp32: OpenVINO's shares are not of it
    assert (prediction.tier, prediction.target) == ("desktop-cpu", "onnxruntime-cpu")
    steps = len(builtin_bundle.manifest.sampling.timesteps)
    assert {graph.name: graph.runs for graph in prediction.graphs} == {
        "text_encoder": 1, "conditioner": 1, "denoiser": steps, "vae_decoder": 1,
    }  # fmt: skip
    low, high = prediction.range_seconds
    assert 0 < low < prediction.seconds < high
    assert sum(prediction.shares("bounds").values()) == pytest.approx(1)
    # No operator is faster than the processor's peak.
    peak = 1e9 * max(tier_data().processors["ryzen-7-7700"]["peak_gflops"].values())
    assert all(graph.time.seconds > counted[graph.name].flops / peak for graph in prediction.graphs)


def test_a_guided_step_asks_twice(builtin_bundle: Bundle) -> None:
    sampling = builtin_bundle.manifest.sampling
    guidance = msgspec.structs.replace(sampling.guidance, guidance_scale=3.0, guidance_interval=(0.0, 0.8))
    manifest = msgspec.structs.replace(builtin_bundle.manifest, sampling=msgspec.structs.replace(sampling, guidance=guidance))
    (prediction,) = predictions(replace(builtin_bundle, manifest=manifest))
    runs = {graph.name: graph.runs for graph in prediction.graphs}
    assert (runs["denoiser"], runs["vae_decoder"]) == (4 + sum(sigma <= 0.8 for sigma in sampling.sigmas[:-1]), 1)


def test_several_tiers_and_those_that_do_not_run_it(builtin_bundle: Bundle) -> None:
    names = ["desktop-gpu-24gb", "desktop-gpu-8gb", "browser"]
    seconds = {prediction.tier: prediction.seconds for prediction in predictions(builtin_bundle, names)}
    assert list(seconds) == names
    assert seconds["desktop-gpu-24gb"] < seconds["desktop-gpu-8gb"] < seconds["browser"]
    with pytest.raises(TierError, match="no such tier"):
        predictions(builtin_bundle, ["toaster"])


def test_it_says_that_it_is_a_forecast(builtin_bundle: Bundle) -> None:
    counted = costs(builtin_bundle)
    predicted = predictions(builtin_bundle, (), counted)
    text, data = render(builtin_bundle, counted, predicted), as_data(builtin_bundle, counted, predicted)
    assert NOTE in text
    assert "predicted" in text
    assert data["note"] == NOTE
    assert data["predictions"][0]["range_seconds"][0] < data["predictions"][0]["picture_seconds"]
    kinds = data["graphs"]["denoiser"]["kinds"]
    assert sum(kind["flops"] for kind in kinds.values()) == data["graphs"]["denoiser"]["flops"]


@pytest.mark.parametrize("tier", ["desktop-cpu", "phone"])
def test_products_before_there_is_a_graph(tier: str) -> None:
    times = ProductTimes(tier, "onnx")
    seconds = {
        name: times.seconds("linear", parse_scheme(name), 4000, (1536, 1536)) for name in ("fp16", "w8a8", "int8g128", "int4g32")
    }
    assert seconds["int8g128"] < seconds["fp16"]
    assert (seconds["w8a8"] < seconds["fp16"]) == (tier == "phone")  # OpenVINO, the desktop's first, has no fast path for it
    assert all(value > 0 for value in seconds.values())
    assert times.seconds("embedding", parse_scheme("fp16"), 77, (49408, 768)) == 0
    # One row only: reading the weight is what takes time, and fewer bits are read sooner.
    assert times.seconds("linear", parse_scheme("int4g32"), 1, (1536, 1536)) < times.seconds(
        "linear", parse_scheme("fp16"), 1, (1536, 1536)
    )


def test_the_command(builtin_bundle: Bundle, tmp_path: Path) -> None:
    done = flash_deploy("predict", builtin_bundle.folder, "--tier", "browser", "--json", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    assert "browser, wasm: a picture in" in done.stdout
    assert json.loads((tmp_path / "p.json").read_text("utf-8"))[0]["predictions"][0]["tier"] == "browser"
    done = flash_deploy("predict", builtin_bundle.folder, "--tier", "toaster", "--json", tmp_path / "q.json")
    assert (done.returncode, "no such tier" in done.stderr) == (2, True)
    assert not (tmp_path / "q.json").exists()


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a bundle"):
        predictions(tmp_path)


def test_the_report_is_told(builtin_bundle: Bundle) -> None:
    """A picture of the bundle on the usual target of every tier that runs its format; never on one that does not."""
    told = forecasts([builtin_bundle.folder])
    assert {one.tier for one in told} == {name for name, tier in all_tiers().items() if "onnx" in tier.formats}
    assert {one.bundle for one in told} == {builtin_bundle.folder.name}
    assert all(0 < one.low < one.seconds < one.high for one in told)
    usual = predictions(builtin_bundle, ["desktop-cpu"])[0]
    mine = next(one for one in told if one.tier == "desktop-cpu")
    assert (mine.target, mine.seconds) == (usual.target, usual.seconds)


def test_bundles_that_no_package_reads_are_not_predicted(builtin_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.bench.advice.find_spec", lambda name: None)
    assert forecasts([builtin_bundle.folder]) == []
