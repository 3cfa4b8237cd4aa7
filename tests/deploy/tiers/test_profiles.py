from __future__ import annotations

import pytest

from deploy.errors import TierError
from deploy.tiers.profiles import check_schemes, computes_in, default_profile, promised_precision
from deploy.tiers.tier import all_tiers, find_tier, legal_schemes
from exporters.choices import FormatName
from quantization.profile import Profile, Rule, uniform
from quantization.schemes import parse_scheme


@pytest.mark.parametrize(
    ("schemes", "promised"),
    [(("fp32",), "fp32"), (("fp16",), "fp16"), (("fp16", "fp32"), "fp16"), (("fp32", "int8"), "mixed"), (("lut6",), "mixed")],
)
def test_a_profile_promises_what_all_of_its_schemes_keep(schemes: tuple[str, ...], promised: str) -> None:
    profile = Profile(tuple(Rule("*", f"{name}*", parse_scheme(name), "") for name in schemes))
    assert promised_precision(profile) == promised


@pytest.mark.parametrize(
    ("tier", "form", "precision", "compute"),
    [
        ("desktop-cpu", "onnx", "fp16", "fp32"),  # CPUs store fp16 and compute fp32
        ("desktop-gpu-8gb", "onnx", "fp16", "fp16"),
        ("desktop-gpu-8gb", "onnx", "fp32", "fp32"),  # an fp32 bundle is for accuracy, whatever the tier could do
        ("phone", "coreml", "fp16", "fp16"),
        ("phone", "coreml", "fp32", "fp32"),
    ],
)
def test_what_matrices_compute_in(tier: str, form: FormatName, precision: str, compute: str) -> None:
    assert computes_in(uniform(precision), form, find_tier(tier)) == compute


def test_every_tier_can_run_its_own_profiles() -> None:
    for name, tier in all_tiers().items():
        for form in tier.formats:
            check_schemes(name, default_profile(name, form), form)


def test_schemes_that_a_tier_cannot_run_are_refused_by_rule() -> None:
    profile = Profile((Rule("*", "*", parse_scheme("fp16"), ""), Rule("vae", "*", parse_scheme("lut6"), "")))
    with pytest.raises(TierError, match=r"rule 2: the tier cannot run its scheme \(expected .*int8.*, got lut6\)"):
        check_schemes("desktop-cpu", profile)


def test_what_only_a_profile_asks_for_is_run_and_never_chosen() -> None:
    """Blocks of other sizes, and fewer bits than any student bears that has not learned with them."""
    for scheme in ("int4g64", "uint4g128", "int2g64"):
        check_schemes("desktop-cpu", uniform(scheme))
        assert scheme not in legal_schemes(find_tier("desktop-cpu"))
    with pytest.raises(TierError, match=r"cannot run its scheme \(expected .* or int4g\*.*, got int2g64\)"):
        check_schemes("desktop-gpu-8gb", uniform("int2g64"))  # onnxruntime's CUDA kernels have 4 and 8 bits
    check_schemes("phone", uniform("lut3g8"), "coreml", "cpu-and-gpu")
    for units, system in (("cpu-and-ne", "iOS18"), ("cpu-and-gpu", "iOS17")):
        with pytest.raises(TierError, match="got lut3g8"):
            check_schemes("phone", uniform("lut3g8"), "coreml", units, system)


def test_older_systems_have_fewer_schemes() -> None:
    phone = find_tier("phone")
    newer, older = (set(legal_schemes(phone, "coreml", "cpu-and-gpu", system)) for system in ("iOS18", "iOS17"))
    assert newer - older == {"int8g32", "int8g128", "int4g32", "uint4g32", "lut4g16"}
    with pytest.raises(TierError, match="iOS 17 cannot run its scheme"):
        check_schemes("phone", uniform("int8g32"), "coreml", "cpu-and-gpu", "iOS17")
