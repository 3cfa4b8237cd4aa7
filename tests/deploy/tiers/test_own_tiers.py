"""Tiers of the user's own: each value from where it is said, each fault by its key, and bundles that outlive their file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.build import BuildRequest, build
from deploy.build.budget import estimate, fitted
from deploy.build.plan import plan
from deploy.bundle.inspect import inspect_bundle, render
from deploy.errors import TierError
from deploy.tiers.profiles import default_profile
from deploy.tiers.read import OWN_TIERS, shipped, tier_data
from deploy.tiers.tier import all_tiers, find_tier
from exporters.student.student import BUILTIN_STUDENT
from tests.helpers.command import flash_deploy

KIOSK = """
[kiosk]
extends = "desktop-cpu"
description = "the kiosk in the hall"
memory_bytes = 3_000_000_000
schemes = ["fp16", "int8"]
targets.onnxruntime-cpu.places = [{ processor = "atom", efficiency = "onnxruntime-cpu" }]

[lobby]
extends = "kiosk"
resolution = 64

[processors.atom]
description = "a small processor"
peak_gflops = { fp32 = 50 }
bandwidth_gb_s = 10
"""
PROFILE = '[[rule]]\ncomponent = "*"\nweights = "*"\nscheme = "{}"\n'


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets for the processes that it starts does not stay."""
    monkeypatch.setenv(OWN_TIERS, "")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay(tmp_path / "mine", KIOSK, monkeypatch, {"kiosk": "int8"})


def lay(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, profiles: dict[str, str] | None = None) -> Path:
    (folder / "profiles").mkdir(parents=True)
    (folder / "tiers.toml").write_text(text)
    for name, scheme in (profiles or {}).items():
        (folder / "profiles" / f"{name}.toml").write_text(PROFILE.format(scheme))
    monkeypatch.setenv(OWN_TIERS, str(folder / "tiers.toml"))
    return folder / "tiers.toml"


@pytest.mark.usefixtures("own")
def test_a_tier_has_its_own_values_and_those_of_what_it_extends() -> None:
    kiosk, lobby, parent = find_tier("kiosk"), find_tier("lobby"), find_tier("desktop-cpu")
    assert (kiosk.memory_bytes, kiosk.schemes, kiosk.description) == (3_000_000_000, ("fp16", "int8"), "the kiosk in the hall")
    assert (kiosk.download_bytes, kiosk.runtimes) == (parent.download_bytes, parent.runtimes)
    assert (lobby.resolution, lobby.memory_bytes) == (64, 3_000_000_000)
    assert kiosk.targets["onnxruntime-cpu"].places[0].processor == "atom"
    assert kiosk.targets["openvino-cpu"] == parent.targets["openvino-cpu"]
    assert [*all_tiers()] == [*shipped().tiers, "kiosk", "lobby"]
    assert tier_data().made_from("desktop-cpu") == ["desktop-cpu-16gb-large", "kiosk", "lobby"]


def test_a_profile_is_its_own_or_that_of_what_it_extends(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [rule.scheme.name for rule in default_profile("lobby").rules] == ["int8"]
    (own.parent / "profiles" / "lobby.toml").write_text(PROFILE.format("fp16"))
    assert [rule.scheme.name for rule in default_profile("lobby").rules] == ["fp16"]
    lay(tmp_path / "other", '[kiosk]\nextends = "desktop-cpu"\n', monkeypatch)
    assert default_profile("kiosk") == default_profile("desktop-cpu")


def test_a_shipped_tier_can_be_changed_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(
        tmp_path / "a", '[phone]\nextends = "phone"\nresolution = 256\n[big]\nextends = "phone"\n', monkeypatch, {"phone": "fp16"}
    )
    assert (find_tier("phone").resolution, find_tier("big").resolution) == (256, 256)
    assert find_tier("phone").memory_bytes == shipped().tiers["phone"].memory_bytes
    assert [rule.scheme.name for rule in default_profile("phone").rules] == ["fp16"]
    assert default_profile("phone", "coreml").rules
    lay(tmp_path / "b", '[phone]\ndescription = "mine"\n', monkeypatch)
    with pytest.raises(TierError, match=r"b/tiers.toml: phone.*missing required field `formats`"):
        all_tiers()


FAULTS = {
    "too deep": ("a = " + "[" * 9999, r"tiers\.toml: maximum recursion depth"),
    "no TOML": ("[kiosk", r"tiers\.toml: .*Expected"),
    "no table": ("kiosk = 3\n", r"tiers\.toml: kiosk: wrong content \(expected a table, got 3\)"),
    "a name that is a path": ('["../kiosk"]\nextends = "phone"\n', r"tiers\.toml: \.\./kiosk: no name for a tier"),
    "extends nothing": ('[kiosk]\nextends = "nobody"\n', r"kiosk\.extends: no such tier before it .*phone.* got nobody"),
    "extends a list": ('[kiosk]\nextends = ["phone"]\n', r"kiosk\.extends: no such tier"),
    "extends what comes after": ('[a]\nextends = "b"\n[b]\nextends = "phone"\n', r"tiers\.toml: a\.extends"),
    "an unknown key": ('[kiosk]\nextends = "phone"\nmemory = 3\n', r"tiers\.toml: kiosk: Object contains unknown field `memory`"),
    "an unknown key deep inside": ('[kiosk]\nextends = "phone"\ncoreml.stage = 3\n', r"kiosk\.coreml: .*unknown field `stage`"),
    "a wrong type": ('[kiosk]\nextends = "phone"\nmemory_bytes = "3 GB"\n', r"kiosk\.memory_bytes: Expected `int`, got `str`"),
    "a wrong word": ('[kiosk]\nextends = "phone"\nattention = "Flash"\n', r"kiosk\.attention: Invalid enum value 'Flash'"),
    "no budget": ('[kiosk]\nextends = "phone"\nmemory_bytes = 0\n', r"kiosk\.memory_bytes: Expected `int` >= 1"),
    "an unknown scheme": ('[kiosk]\nextends = "phone"\nschemes = ["fp16", "int5"]\n', r"kiosk\.schemes: .*got int5"),
    "an unknown scheme of Core ML's": (
        '[kiosk]\nextends = "phone"\ncoreml.schemes.cpu-and-ne = ["lut9"]\n', r"kiosk\.coreml\.schemes\.cpu-and-ne: .*got lut9"
    ),
    "an unknown scheme for profiles": (
        '[kiosk]\nextends = "phone"\nprofile_schemes = ["int4g*", "int5g*"]\n', r"kiosk\.profile_schemes: .*got int5g\*"
    ),
    "an unknown pattern of Core ML": (
        '[kiosk]\nextends = "phone"\ncoreml.profile_schemes.cpu-and-ne = ["lut9"]\n',
        r"kiosk\.coreml\.profile_schemes\.cpu-and-ne: .*got lut9",
    ),
    "no schemes": ('[kiosk]\nextends = "phone"\nschemes = []\n', r"kiosk\.schemes: is empty"),
    "no runtime": ('[kiosk]\nextends = "phone"\nruntimes = []\n', r"kiosk\.runtimes: is empty"),
    "Core ML without its table": (
        '[kiosk]\nextends = "browser"\nformats = ["coreml"]\n', r"kiosk\.coreml: is missing .*coreml is among the formats"
    ),
    "processors that are none": ("processors = 3\n", r"tiers\.toml: processors: Expected `object`, got `int`"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_told_by_its_key(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path / "mine", text, monkeypatch)
    with pytest.raises(TierError, match=message):
        tier_data()


def test_all_faults_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path / "mine", '[a]\nextends = "phone"\nsteps = 0\n[b]\nextends = "phone"\nsteps = 0\n', monkeypatch)
    with pytest.raises(TierError) as caught:
        tier_data()
    assert len(caught.value.complaints) == 2


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"#" * (1 << 21)], ids=["missing", "no text", "huge"])
def test_a_file_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "tiers.toml"
    if content is not None:
        file.write_bytes(content)
    done = flash_deploy("tiers", "--tiers", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(file) in done.stderr
    assert len(done.stderr.splitlines()) < 8


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tiers.toml")
    done = flash_deploy("tiers", "--tiers", tmp_path / "tiers.toml")
    assert (done.returncode, "is not a file" in done.stderr) == (2, True)


def test_commands_take_the_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kiosk: the kiosk in the hall" in flash_deploy("tiers").stdout  # from the environment
    monkeypatch.setenv(OWN_TIERS, "")
    assert "kiosk: the kiosk in the hall" in flash_deploy("tiers", "--tiers", own).stdout
    assert "kiosk" not in flash_deploy("tiers").stdout
    told = flash_deploy("build", "--tiers", own, "--tier", "lobby", "--dry-run", "-o", own.parent / "b").stdout
    assert "64 x 64 px" in told
    assert "*/* -> int8" in told
    refused = flash_deploy("build", "--tier", "lobby", "--dry-run", "-o", own.parent / "b")
    assert refused.returncode == 2
    assert "no such tier" in refused.stderr


def test_a_processor_that_is_not_there_is_told_when_tiers_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = lay(tmp_path / "mine", KIOSK.replace('processor = "atom"', 'processor = "atmo"'), monkeypatch)
    done = flash_deploy("tiers", "--tiers", file)
    assert done.returncode == 2
    assert "kiosk.targets.onnxruntime-cpu: no such processor" in done.stderr


def test_a_bundle_opens_where_its_tier_is_not_known(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build(BuildRequest(output=tmp_path / "b", student=BUILTIN_STUDENT, tier="lobby", parity="never"))
    assert inspect_bundle(bundle.folder)["tier_memory_bytes"] == 3_000_000_000
    monkeypatch.setenv(OWN_TIERS, "")
    assert "by a tier that is not known here" in render(inspect_bundle(bundle.folder))
    done = flash_deploy("generate", bundle.folder, "a red circle", "-o", tmp_path / "picture.png")
    assert done.returncode == 0, done.stderr
    assert "lobby, onnxruntime-cpu: a picture in" in flash_deploy("predict", bundle.folder, "--tiers", own).stdout
    assert flash_deploy("card", bundle.folder).returncode == 0


def test_a_default_that_does_not_fit_names_the_tier_that_is_made_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[small]\nextends = "desktop-cpu"\ndownload_bytes = {}\n[roomy]\nextends = "small"\ndownload_bytes = 1_000_000_000\n'
    request = BuildRequest(output=tmp_path / "b", tier="small")
    lay(tmp_path / "a", text.format(1_000_000_000), monkeypatch)
    least = estimate(plan(request)).stored_bytes
    assert not any("made for students" in note for note in fitted(plan(request)).notes)
    lay(tmp_path / "b2", text.format(least - 1), monkeypatch)
    assert any(note.endswith("made for students of this size: --tier roomy") for note in fitted(plan(request)).notes)
    lay(tmp_path / "b3", text.format(least - 1), monkeypatch, {"roomy": "int5"})  # a fault of another tier's stops no build
    assert not any("made for students" in note for note in fitted(plan(request)).notes)
