"""Bundles of several sizes: each size draws what a bundle of that size alone draws, and weights are stored once."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

import deploy.build.run
import exporters.coreml.functions
from deploy.build import BuildRequest, build
from deploy.build.budget import estimate
from deploy.build.plan import plan
from deploy.build.verify import verify
from deploy.bundle.folder import Bundle, check_files, open_bundle
from deploy.bundle.inspect import inspect_bundle, render
from deploy.bundle.manifest import parse_manifest
from deploy.bundle.seal import partial_folder
from deploy.cli.main import app
from deploy.cli.options import parse_size
from deploy.errors import BundleError, InputError
from deploy.forecast.predict import predictions
from deploy.runtime.arguments import picture_size
from deploy.runtime.pipeline import Pipeline
from exporters.errors import ExportError
from exporters.student.student import Student
from tests.helpers.builds import Log, small

PROFILE = """
[[rule]]
component = "*"
weights = "*"
scheme = "fp16"

[[rule]]
component = "transformer"
weights = "*"
scheme = "int8g32"

[[rule]]
component = "vae"
weights = "*"
scheme = "int8"
"""
OWN, OTHER = (48, 32), (32, 48)
"""Height and width: the default, and what can be drawn beside it."""


def sized(students: dict[str, Student], output: Path, **changes: object) -> BuildRequest:
    """A small build of two sizes."""
    height, width = OWN
    return small(students, output, **{"height": height, "width": width, "other_sizes": (OTHER,), **changes})


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("profile") / "mixed.toml"
    file.write_text(PROFILE)
    return file


@pytest.fixture(scope="module")
def several(students: dict[str, Student], profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("several") / "bundle"
    return build(sized(students, output, profile=profile, vae_encoder=True))


@pytest.fixture(scope="module")
def alone(students: dict[str, Student], profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of the other size."""
    output, (height, width) = tmp_path_factory.mktemp("alone") / "bundle", OTHER
    return build(small(students, output, profile=profile, height=height, width=width, vae_encoder=True))


def test_each_size_draws_what_a_bundle_of_it_alone_draws(several: Bundle, alone: Bundle) -> None:
    """The same graphs of the same codes: to the last bit."""
    height, width = OTHER
    with Pipeline(several) as mine, Pipeline(alone) as other:
        assert np.array_equal(mine.generate("a cat", 3, height=height, width=width), other.generate("a cat", 3))
        image = np.random.default_rng(0).random((height, width, 3), np.float32)
        upon = mine.generate("a cat", height=height, width=width, image=image)
        assert np.array_equal(upon, other.generate("a cat", image=image))
        assert mine.generate("a cat").shape == (1, *OWN, 3)


def test_weights_are_stored_once(several: Bundle, alone: Bundle, students: dict[str, Student]) -> None:
    """What lies in a size's own data is its table of positions, in at most fp32; its small vectors lie in the graph's file."""
    manifest, config = several.manifest, students["tiny"].configs["transformer"]
    channels = config["num_attention_heads"] * config["attention_head_dim"]
    positions = 4 * channels * (OTHER[0] // 8 // config["patch_size"]) * (OTHER[1] // 8 // config["patch_size"])
    data = {file.path: file.size_bytes for file in manifest.files if file.path.endswith(".data")}
    assert [graph.name for graph in manifest.graphs if graph.shares] == ["denoiser_6x4", "vae_decoder_6x4", "vae_encoder_6x4"]
    assert {path for path in data if "6x4" in path} == {"denoiser_6x4.onnx.data"}
    assert data["denoiser_6x4.onnx.data"] <= positions
    for kind in ("denoiser", "vae_decoder", "vae_encoder"):
        mine, own = manifest.graph(f"{kind}_6x4"), alone.manifest.graph(kind)
        assert (mine.shares, mine.parameters) == (kind, own.parameters)
        assert f"{kind}.onnx.data" in manifest.files_of(mine.name)
        assert mine.weight_bytes < own.weight_bytes / 2
    assert check_files(several) == []


def test_each_size_is_measured(students: dict[str, Student], tmp_path: Path) -> None:
    """Graphs and pictures of every size, against diffusers."""
    bundle = build(sized(students, tmp_path / "bundle", precision="fp32", parity="always"))
    assert all(graph.parity_db is not None and graph.parity_db >= 100 for graph in bundle.manifest.graphs)
    report = verify(bundle.folder, students["tiny"].path)
    assert report.complaints == []
    assert {"denoiser_6x4", "vae_decoder_6x4"} < report.graph_db.keys()
    [other] = [name for name in report.picture_db if name.endswith(", 48 x 32 px")]
    assert report.picture_db[other] > 50


def test_the_sizes_of_a_hub_cache(several: Bundle, tmp_path: Path) -> None:
    """Links to blobs: what loads a graph finds the weights that it shares."""
    for record in several.manifest.files:
        link = tmp_path / "hub" / "snapshots" / "1" / record.path
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = tmp_path / "hub" / "blobs" / record.sha256
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            blob.hardlink_to(several.file(record.path))
        link.symlink_to(os.path.relpath(blob, link.parent))
    folder = tmp_path / "hub" / "snapshots" / "1"
    (folder / "manifest.json").write_bytes(several.manifest.to_json())
    height, width = OTHER
    with Pipeline(open_bundle(folder)) as linked, Pipeline(several) as plain:
        assert np.array_equal(*(one.generate("a cat", height=height, width=width) for one in (linked, plain)))


@pytest.mark.parametrize("last", ["denoiser_6x4"])
def test_an_interrupted_build_goes_on(
    last: str, several: Bundle, students: dict[str, Student], profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the graph whose weights are shared was written before, and is not traced again."""
    request = sized(students, tmp_path / "bundle", profile=profile, vae_encoder=True)
    write = deploy.build.run._Build._write

    def interrupted(job, graph, draft):
        if graph.name == last:
            raise KeyboardInterrupt
        return write(job, graph, draft)

    monkeypatch.setattr(deploy.build.run._Build, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(request)
    monkeypatch.undo()
    log = Log()
    bundle = build(request, log)
    assert log.traced[0] == last
    assert bundle.manifest.files == several.manifest.files


def test_what_shares_is_made_anew_with_what_it_shares(
    students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = sized(students, tmp_path / "bundle")
    monkeypatch.setattr(deploy.build.run, "describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(request)
    monkeypatch.undo()
    data = partial_folder(request.output) / "denoiser.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    log = Log()
    build(request, log)
    assert log.traced == ["denoiser", "denoiser_6x4"]


def test_which_size_is_picked(several: Bundle) -> None:
    asked = {(None, None): OWN, (32, None): OTHER, (None, 48): OTHER, (None, 32): OWN, OTHER: OTHER}
    assert {given: picture_size(several.manifest, *given) for given in asked} == asked
    for given in ((48, 48), (None, 40), (True, None), (32.5, None)):
        with pytest.raises(InputError, match=r"this bundle draws no such size .expected one of 32x48, 48x32, got"):
            picture_size(several.manifest, *given)


def test_it_says_its_sizes(several: Bundle) -> None:
    assert "picture: 32 x 48 or 48 x 32 px" in render(inspect_bundle(several.folder))


def test_forecasts_are_of_the_default_size(several: Bundle) -> None:
    [forecast, *_] = predictions(several)
    assert {graph.name for graph in forecast.graphs} == {"text_encoder", "conditioner", "denoiser", "vae_decoder"}


def test_sizes_are_foreseen(students: dict[str, Student], profile: Path, tmp_path: Path, several: Bundle) -> None:
    """Stored bytes of what is shared are counted once, before anything is traced."""
    settled = plan(sized(students, tmp_path / "bundle", profile=profile, vae_encoder=True))
    sizes = estimate(settled)
    assert [name for name, size in sizes.stored.items() if not size] == [
        graph.name for graph in several.manifest.graphs if graph.shares
    ]
    assert sizes.memory["vae_decoder_6x4"] == pytest.approx(several.manifest.graph("vae_decoder_6x4").memory_bytes, rel=0.1)


def test_the_same_size_twice_is_one(students: dict[str, Student], tmp_path: Path) -> None:
    settled = plan(sized(students, tmp_path / "bundle", other_sizes=(OWN, OTHER, OTHER)))
    assert settled.options.other_sizes == (OTHER,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other_sizes": ((60, 32),)}, "height: does not fit the student .expected a multiple of 16"),
        ({"other_sizes": ((32, 4096),)}, "width: does not fit the student"),
        ({"dynamic": True}, "these graphs draw any size"),
        ({"layout": "optimum"}, "these graphs draw any size"),
        ({"tier": "browser"}, "the browser's page draws one size"),
        ({"vae_bands": 12}, "vae_bands: do not divide the picture .expected a divisor of 8"),
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, object], message: str, students: dict[str, Student], tmp_path: Path) -> None:
    with pytest.raises((InputError, ExportError), match=message):
        plan(sized(students, tmp_path / "bundle", **changes))


@pytest.mark.parametrize("sizes", [((48,),), ((48, 0),), ((48, "32"),)])
def test_what_is_no_size(sizes: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other_sizes: wrong"):
        BuildRequest(output=tmp_path, other_sizes=sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("system", "shares"), [("iOS17", False), ("iOS18", True)])
def test_core_ml_shares_where_it_can(system: str, shares: bool, students: dict[str, Student], tmp_path: Path) -> None:
    settled = plan(sized(students, tmp_path / "bundle", format="coreml", tier="laptop-apple", system=system))
    assert any("each of the 2 sizes has packages of its own" in note for note in settled.notes) != shares
    assert (estimate(settled).stored["denoiser_6x4"] == 0) == shares


CORE_ML: dict[str, object] = {"format": "coreml", "tier": "laptop-apple", "precision": "fp16", "parity": "never", "stages": 2}


@pytest.fixture(scope="module")
def packages(students: dict[str, Student], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(sized(students, tmp_path_factory.mktemp("packages") / "bundle", **CORE_ML))


def test_core_ml_functions(packages: Bundle, students: dict[str, Student], tmp_path: Path) -> None:
    """Each program of the denoiser holds both sizes, draws as a bundle of that size alone, and stores weights once."""
    (height, width), manifest = OTHER, packages.manifest
    alone = build(small(students, tmp_path / "alone", **CORE_ML, height=height, width=width))
    with Pipeline(packages) as mine, Pipeline(alone) as other:
        assert np.array_equal(mine.generate("a cat", 3, height=height, width=width), other.generate("a cat", 3))
        assert mine.generate("a cat").shape == (1, *OWN, 3)
    folders = {file.path.partition("/")[0] for file in manifest.files if ".mlpackage/" in file.path}
    assert folders == {f"{name}.mlpackage" for name in ("text_encoder", "conditioner", "denoiser_1", "denoiser_2", "vae_decoder")}
    for kind in ("denoiser", "vae_decoder"):
        graph, own = manifest.graph(f"{kind}_6x4"), alone.manifest.graph(kind)
        assert (graph.shares, graph.function, graph.path) == (kind, f"{kind}_6x4", manifest.graph(kind).path)
        assert graph.weight_bytes < own.weight_bytes / 2
        assert set(manifest.files_of(graph.name)) == set(manifest.files_of(kind))
    stored = [sum(file.size_bytes for file in bundle.manifest.files if "weight.bin" in file.path) for bundle in (packages, alone)]
    assert stored[0] < 1.2 * stored[1]
    assert check_files(packages) == []
    report = verify(packages.folder, students["tiny"].path)
    assert report.complaints == []
    assert {"denoiser_6x4", "vae_decoder_6x4"} < report.graph_db.keys()


def test_core_ml_goes_on_where_it_was_interrupted_while_packages_are_joined(
    packages: Bundle, students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half joined is written again."""
    request = sized(students, tmp_path / "bundle", **CORE_ML)
    add = exporters.coreml.functions.add_function

    def interrupted(package: Path, name: str, other: Path) -> int:
        add(package, name, other)
        if package.stem == "denoiser_2":
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(exporters.coreml.functions, "add_function", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(request)
    monkeypatch.undo()
    log = Log()
    bundle = build(request, log)
    assert log.traced == ["denoiser", "denoiser_6x4"]
    assert bundle.manifest.files == packages.manifest.files


def test_a_manifest_that_names_a_function_twice(packages: Bundle) -> None:
    graphs = [msgspec.structs.replace(graph, function="main") for graph in packages.manifest.graphs]
    with pytest.raises(BundleError, match=r"names the function main of denoiser_1.mlpackage twice"):
        parse_manifest(msgspec.structs.replace(packages.manifest, graphs=tuple(graphs)).to_json(), Path("manifest.json"))


@pytest.mark.parametrize("change", [{"shares": "vae_decoder_6x4"}, {"shares": "nobody"}, {"shares": "denoiser_6x4"}])
def test_a_manifest_that_shares_what_is_not_there(change: dict[str, str], several: Bundle) -> None:
    graphs = [
        msgspec.structs.replace(graph, **change) if graph.name == "denoiser_6x4" else graph for graph in several.manifest.graphs
    ]
    with pytest.raises(BundleError, match="denoiser_6x4: shares weights with no graph that has its own"):
        parse_manifest(msgspec.structs.replace(several.manifest, graphs=tuple(graphs)).to_json(), Path("manifest.json"))


def test_a_manifest_that_lacks_a_size(several: Bundle) -> None:
    graphs = tuple(graph for graph in several.manifest.graphs if graph.name != "vae_decoder_6x4")
    with pytest.raises(BundleError, match=r"graphs are missing.*no vae_decoder_6x4"):
        parse_manifest(msgspec.structs.replace(several.manifest, graphs=graphs).to_json(), Path("manifest.json"))


@pytest.mark.parametrize("text", ["96", "96x", "0x64", "-96x64", "96x64x3", "9 6x64", "\N{FULLWIDTH DIGIT NINE}6x64", ""])
def test_a_size_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match=r"--size: is no size .expected WIDTHxHEIGHT"):
        parse_size(text)


def test_the_commands(several: Bundle, tmp_path: Path) -> None:
    run, picture = CliRunner().invoke, tmp_path / "picture.npy"
    assert run(app, ["generate", str(several.folder), "a cat", "--size", "48x32", "-o", str(picture)]).exit_code == 0
    assert np.load(picture).shape == (1, *OTHER, 3)
    both = run(app, ["generate", str(several.folder), "a cat", "--size", "48x32", "--width", "48", "-o", str(picture)])
    assert isinstance(both.exception, InputError)
    assert "says what --height and --width say" in str(both.exception)
    told = run(app, ["build", "--dry-run", "--size", "64x64", "--size", "96x64", "-o", str(tmp_path / "bundle")])
    assert "picture: 64 x 64 or 96 x 64 px" in told.output
