"""Budgets are told before anything is traced, from headers alone: the student here is SD3.5-Large's shape, in files of holes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploy.build import BuildRequest, build
from deploy.build.budget import LEAST_BANDS, Destination, best_uniform, estimated_sizes, fitted, in_bands
from deploy.build.onnx_format import OnnxFormat
from deploy.build.plan import plan
from deploy.build.verify import bundle_options, profile_of
from deploy.bundle.folder import Bundle
from deploy.bundle.inspect import inspect_bundle, render
from deploy.bundle.memory import RUNTIME_BYTES
from deploy.errors import InputError, TierError
from deploy.runtime.pipeline import Pipeline
from deploy.tiers.profiles import default_profile
from deploy.tiers.tier import all_tiers, find_tier
from deploy.tune.profile_file import write_fitting_profile
from distillation.random_students import PRESETS
from exporters.choices import FormatName
from exporters.layouts.plan import plan_graphs
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT, Student
from quantization.profile import load_profile
from tests.helpers.command import flash_deploy
from tests.helpers.sparse_student import make_sparse_student

LARGE = replace(PRESETS["full"], layers=38, heads=38, dual_layers=0, max_positions=192)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sparse_student(LARGE, tmp_path_factory.mktemp("large") / "student")


class TracedError(Exception):
    pass


@pytest.fixture
def nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TracedError

    monkeypatch.setattr(OnnxFormat, "draft", refuse)


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    ("tier", "scheme", "default"), [("desktop-gpu-24gb", "int8g32", "27.36 GB"), ("desktop-cpu", "uint4g32", "9.35 GB")]
)
@pytest.mark.usefixtures("nothing_is_traced")
def test_default_that_does_not_fit_gives_way_to_what_does(
    tier: str, scheme: str, default: str, large: Path, tmp_path: Path
) -> None:
    told = Notes()
    with pytest.raises(TracedError):  # it goes on
        build(BuildRequest(output=tmp_path / "b", student=large, tier=tier), told)
    (note,) = [note for note in told.notes if "default profile" in note]
    assert default in note
    assert f"{scheme} for all in its place" in note
    assert re.search(rf"made for students of this size: --tier {tier}\S*-large$", note)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tier", "model_format"), [(name, form) for name, tier in all_tiers().items() if "large" in name for form in tier.formats]
)
def test_tiers_for_large_students_hold_them_by_their_own_profile(
    tier: str, model_format: FormatName, large: Path, tmp_path: Path
) -> None:
    planned = plan(BuildRequest(output=tmp_path / "b", student=large, tier=tier, format=model_format))
    assert fitted(planned) is planned
    assert planned.profile == default_profile(tier, model_format)
    assert planned.options.keep_t5 == (tier == "desktop-gpu-24gb-large")
    keys = [(weight.component, weight.name) for graph in planned.graphs for weight in graph.student_weights.values()]
    planned.profile.check_coverage(keys, () if planned.options.keep_t5 else ("text_encoder_3",))


TOO_LARGE = {
    "no scheme fits": (
        {"tier": "phone"},
        r"at most 2\.70 GB, got 9\.20 GB[\s\S]*no uniform profile of this tier fits; tiers with one",
    ),
    "what was asked for": (
        {"tier": "desktop-cpu", "precision": "fp16"},
        r"at most 7\.00 GB, got 17\.8\d GB[\s\S]*uint4g32 for all fits \(5\.\d+ GB\): `build --save-profile FILE` writes it; `fl",
    ),
}


@pytest.mark.usefixtures("nothing_is_traced")
@pytest.mark.parametrize(("changes", "message"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_cannot_fit_is_refused_untraced(changes: dict, message: str, large: Path, tmp_path: Path) -> None:
    with pytest.raises(TierError, match=message):
        build(BuildRequest(output=tmp_path / "b", student=large, **changes))
    assert not list(tmp_path.iterdir())


def test_estimates_are_what_graphs_turn_out_to_be(builtin_bundle: Bundle) -> None:
    """But for constants of the trace and rows that are padded, which weigh a percent of so small a student."""
    manifest = builtin_bundle.manifest
    graphs = plan_graphs(open_student(BUILTIN_STUDENT), bundle_options(builtin_bundle))
    place = Destination("desktop-cpu", find_tier("desktop-cpu"))
    sizes = estimated_sizes(graphs, profile_of(manifest), place)
    assert sizes.stored_bytes == pytest.approx(sum(graph.weight_bytes for graph in manifest.graphs), rel=0.02)
    assert sizes.memory == pytest.approx({graph.name: graph.memory_bytes for graph in manifest.graphs}, rel=0.03)


def test_largest_scheme_that_fits_is_chosen(builtin_bundle: Bundle) -> None:
    graphs = plan_graphs(open_student(BUILTIN_STUDENT), bundle_options(builtin_bundle))
    tier = find_tier("desktop-cpu")
    weights = sum(graph.parameters for graph in graphs)
    chosen = []
    for bits in (40, 20, 13, 8, 3):
        narrow = msgspec.structs.replace(tier, download_bytes=weights * bits // 8)
        best = best_uniform(graphs, Destination("desktop-cpu", narrow))
        chosen.append(best and best[0])
    assert chosen == ["fp32", "fp16", "int8g32", "uint4g32", None]


def test_a_refusal_s_profile_is_written_and_fits(large: Path, tmp_path: Path) -> None:
    asked = ("build", large, "--tier", "desktop-cpu", "-o", tmp_path / "b", "--dry-run")
    file = tmp_path / "fits.toml"
    refused = flash_deploy(*asked, "--precision", "fp16", "--save-profile", file)
    assert refused.returncode == 2
    assert "exceeds the budget" in refused.stderr
    assert file.read_text().startswith("# uint4g32 for all, the largest scheme that fits: 5.")
    again = flash_deploy(*asked, "--profile", file, "--save-profile", file)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    taken = flash_deploy(*asked, "--profile", file)
    assert taken.returncode == 0, taken.stderr
    assert "text_encoder/* -> uint4g32" in taken.stdout


def test_a_profile_that_fits_is_written_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    request = BuildRequest(output=tmp_path / "b", tier="desktop-cpu-16gb-large")
    write_fitting_profile(request, file)
    assert load_profile(file) == default_profile("desktop-cpu-16gb-large")
    assert file.read_text().startswith("# What was asked for: 0.00 GB of builtin_student's weights for desktop-cpu-16gb-large")


def test_a_vae_that_does_not_fit_at_once_is_computed_in_bands(students: dict[str, Student], tmp_path: Path) -> None:
    """As few as fit, and said so; a bundle records them and is measured like any other."""
    tiny = students["tiny"].path
    request = BuildRequest(
        output=tmp_path / "b", student=tiny, precision="fp32", height=96, width=64, keep_t5=False, vae_encoder=True
    )
    planned = plan(request)
    at_once = estimated_sizes(planned.graphs, planned.profile, Destination.of(planned))
    assert in_bands(planned) is planned
    for room in (0.9, 0.7):
        tier = msgspec.structs.replace(planned.tier, memory_bytes=int(RUNTIME_BYTES + room * at_once.memory["vae_decoder"]))
        cut = in_bands(replace(planned, tier=tier))
        count = cut.options.vae_bands
        assert 24 % count == 0
        assert {graph.bands for graph in cut.graphs if "vae" in graph.name} == {count}
        assert re.search(rf"the VAE is computed in {count} bands of rows: at once it would take", cut.notes[-1])
        fewer = [n for n in range(LEAST_BANDS, count) if 24 % n == 0]
        sizes = estimated_sizes(cut.graphs, cut.profile, Destination.of(cut))
        assert sizes.memory["vae_decoder"] <= tier.memory_bytes - RUNTIME_BYTES
        for n in fewer:
            graphs = plan_graphs(cut.student, replace(cut.options, vae_bands=n))
            assert (
                estimated_sizes(graphs, cut.profile, Destination.of(cut)).memory["vae_decoder"]
                > tier.memory_bytes - RUNTIME_BYTES
            )
    tier = msgspec.structs.replace(planned.tier, memory_bytes=RUNTIME_BYTES)
    assert in_bands(replace(planned, tier=tier)).options.vae_bands == 1  # in no number of bands
    bundle = build(replace(request, vae_bands=2, vae_encoder=False))
    assert [graph.bands for graph in bundle.manifest.graphs] == [1, 1, 1, 2]
    assert "vae_decoder in 2 bands" in render(inspect_bundle(bundle.folder))
    assert (bundle.manifest.graph("vae_decoder").parity_db or 0) >= 100
    assert np.isfinite(Pipeline(bundle).generate("a cat", seed=2)).all()
    for changes in ({"dynamic": True}, {"layout": "optimum"}, {"format": "coreml", "tier": "phone"}):
        with pytest.raises(InputError, match=r"--vae-bands: are of ONNX graphs of the layout native and of a fixed size"):
            replace(request, vae_bands=4, **changes)
