from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.bundle.folder import Bundle, check_files, open_bundle
from deploy.bundle.inspect import inspect_bundle, render
from deploy.bundle.manifest import read_manifest
from deploy.errors import BundleError, TierError
from deploy.runtime.pipeline import Pipeline
from deploy.tiers.tier import find_tier
from exporters.reference.decibels import psnr_db
from tests.helpers.kept_bundle import V1

Change = Callable[[dict[str, Any]], None]


def edit(bundle: Path, change: Change) -> None:
    file = bundle / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_manifest_survives_a_round_trip(builtin_bundle: Bundle) -> None:
    manifest = read_manifest(builtin_bundle.folder)
    assert manifest == builtin_bundle.manifest
    assert manifest.to_json() == (builtin_bundle.folder / "manifest.json").read_bytes()


def test_manifest_tells_what_the_bundle_is(builtin_bundle: Bundle) -> None:
    manifest = builtin_bundle.manifest
    assert [graph.name for graph in manifest.graphs] == ["text_encoder", "conditioner", "denoiser", "vae_decoder"]
    assert all(graph.parity_db is not None and graph.parity_db >= 100 for graph in manifest.graphs)
    assert [graph.parity_cases for graph in manifest.graphs] == [2, 4, 4, 3]  # the worst of prompts, a picture and draws
    assert manifest.sampling.sigmas == pytest.approx((1, 0.9, 0.75, 0.5, 0))
    assert manifest.text.t5 == "dropped"
    assert check_files(builtin_bundle) == []


def test_bundle_of_version_1_still_draws_what_it_drew() -> None:
    """Kept as flash-deploy 0.1.0 made it; fp16 weights and two threads' sums leave pictures equal to 80 dB and more."""
    folder = V1
    assert json.loads((folder / "manifest.json").read_text())["version"] == 1
    bundle = open_bundle(folder)
    assert check_files(bundle) == []
    picture = Pipeline(bundle).generate("a cat", seed=3)
    assert psnr_db(np.load(folder.with_suffix(".npy")), picture) > 80


BAD_MANIFESTS: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda m: m.update(tiers="x"), r"unknown field `tiers`"),
    "wrong type": (
        lambda m: m["graphs"][1].update(parameters="9"),
        r"Expected `int`, got `str` - at `\$.graphs\[1\].parameters`",
    ),
    "negative size": (lambda m: m["files"][0].update(size_bytes=-1), r"\$.files\[0\].size_bytes"),
    "no checksum": (lambda m: m["files"][0].update(sha256="abc"), r"\$.files\[0\].sha256"),
    "missing key": (lambda m: m.pop("sampling"), r"missing required field `sampling`"),
    "newer version": (
        lambda m: m.update(version=3, new_key=1, created_with={"flash-deploy": "7.1"}),
        r"made by a newer flash-deploy \(expected version 2, got 3\)[\s\S]*install flash-deploy 7\.1 or newer",
    ),
    "another format": (lambda m: m.update(format="zip"), r"Invalid enum value 'zip'"),
    "parent path": (lambda m: m["files"][0].update(path="../../etc/passwd"), r"names a path outside the bundle"),
    "absolute path": (
        lambda m: m["graphs"][0].update(path="/etc/passwd"),
        r"names a path outside the bundle .*'/etc/passwd'",
    ),
    "path in two ways": (lambda m: m["files"][0].update(path="./" + m["files"][0]["path"]), r"names a path outside the bundle"),
    "file twice": (lambda m: m["files"].append(m["files"][0]), r"names a file twice \(got 'conditioner.onnx'\)"),
    "graph twice": (lambda m: m["graphs"].append(m["graphs"][2]), r"names a graph twice \(got 'denoiser'\)"),
    "rising sigmas": (
        lambda m: m["sampling"].update(sigmas=[1.0, 0.5, 0.75, 0.25, 0.0]),
        r"sigmas are wrong \(expected numbers that fall, from at most 1 to 0, got 1.0, 0.5",
    ),
    "sigmas that do not end": (lambda m: m["sampling"]["sigmas"].__setitem__(4, 0.1), r"sigmas are wrong"),
    "a client's step that is missing": (
        lambda m: m.update(client_schedule={"steps": 4, "shift": 3.0, "timesteps": [1000.0, 858.0, 602.0], "scales": [1.0] * 4}),
        r"client_schedule is wrong \(expected at least 4 steps, a timestep and a scale above 0 for each",
    ),
    "a client's step that does nothing": (
        lambda m: m.update(
            client_schedule={"steps": 4, "shift": 3.0, "timesteps": [1000.0, 858.0, 602.0, 8.9], "scales": [1.0, 0.0, 1.0, 1.0]}
        ),
        r"client_schedule is wrong",
    ),
    "drive path": (lambda m: m["files"][0].update(path="C:x"), r"names a path outside the bundle"),
    "NUL in a path": (lambda m: m["files"][0].update(path="a\0b"), r"names a path outside the bundle"),
    "version": (lambda m: m.update(version=-5), r"\$.version"),
    "latent channels": (
        lambda m: m["picture"].update(latent_channels=4),
        r"denoiser: hidden_states has another shape \(expected \[1, 4, 8, 8\], got \(1, 16, 8, 8\)\)",
    ),
    "pixels per latent": (lambda m: m["picture"].update(pixels_per_latent=4), r"hidden_states has another shape"),
    "huge picture": (lambda m: m["picture"].update(height=1 << 40), r"\$.picture.height"),
    "picture": (lambda m: m["picture"].update(height=128), r"vae_decoder: sample has another shape"),
    "token count": (lambda m: m["text"]["tokenizers"][0].update(max_length=1 << 62), r"\$.text.tokenizers\[0\].max_length"),
    "other token count": (
        lambda m: m["text"]["tokenizers"][0].update(max_length=9),
        r"text_encoder: input_ids has another shape",
    ),
    "padding token": (lambda m: m["text"]["tokenizers"][0].update(pad_token_id=1 << 40), r"pad_token_id"),
    "no tokenizers": (
        lambda m: m["text"].update(tokenizers=[]),
        r"tokenizers are wrong \(expected input_ids, input_ids_2\)",
    ),
    "tokenizer of nothing": (lambda m: m["text"]["tokenizers"][1].update(input="x"), r"tokenizers are wrong"),
    "T5 claimed": (lambda m: m["text"].update(t5="kept"), r"expected input_ids, input_ids_2, input_ids_3"),
    "other layout": (lambda m: m.update(layout="optimum"), r"graphs are missing .* got no text_encoder_2, transformer"),
    "steps": (
        lambda m: m["sampling"].update(sigmas=[1.0, 0.5, 0.0], timesteps=[1000.0, 500.0]),
        r"conditioner: modulations has another shape \(expected \[2, ",
    ),
    "unlisted graph": (
        lambda m: m["files"].remove(next(f for f in m["files"] if f["path"] == "denoiser.onnx")),
        r"denoiser.onnx is used and not listed",
    ),
    "sigmas": (lambda m: m["sampling"]["sigmas"].pop(), r"expected one sigma more than timesteps, got 4 and 4"),
    "missing file": (
        lambda m: m["files"].append({"path": "x.bin", "size_bytes": 1, "sha256": "0" * 64}),
        r"x.bin: missing",
    ),
    "wrong size": (lambda m: m["files"][0].update(size_bytes=5), r"wrong size \(expected 5 bytes"),
}


@pytest.mark.parametrize(("change", "message"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_bad_manifests_are_refused(change: Change, message: str, damaged_bundle: Path) -> None:
    edit(damaged_bundle, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(damaged_bundle)


def test_damaged_json(damaged_bundle: Path) -> None:
    (damaged_bundle / "manifest.json").write_text('{"format":')
    with pytest.raises(BundleError, match="The manifest is damaged"):
        open_bundle(damaged_bundle)


def test_deep_json(damaged_bundle: Path) -> None:
    deep = "[" * 20_000 + "]" * 20_000
    (damaged_bundle / "manifest.json").write_text(f'{{"format": "flash-deploy bundle", "version": 1, "x": {deep}}}')
    with pytest.raises(BundleError, match="The manifest is damaged"):
        open_bundle(damaged_bundle)


def test_endless_manifest(damaged_bundle: Path) -> None:
    with (damaged_bundle / "manifest.json").open("wb") as stream:
        stream.truncate(1 << 34)
    with pytest.raises(BundleError, match=r"too large for a manifest \(expected at most 67108864 bytes, got 17179869184 bytes"):
        open_bundle(damaged_bundle)


def test_manifest_that_is_a_pipe(damaged_bundle: Path) -> None:
    (damaged_bundle / "manifest.json").unlink()
    os.mkfifo(damaged_bundle / "manifest.json")
    with pytest.raises(BundleError, match="is not a file"):
        open_bundle(damaged_bundle)


def test_messages_and_descriptions_hold_no_control_characters(damaged_bundle: Path) -> None:
    """A foreign bundle must not drive the terminal that it is described on."""
    edit(damaged_bundle, lambda m: m["student"].update(name="\x1b[2Jmine", licences={"L\x9bx": ""}))
    lines = render(inspect_bundle(damaged_bundle))
    assert "student: \\x1b[2Jmine" in lines
    edit(damaged_bundle, lambda m: m.update(tier="\x1b]0;title\x07"))
    foreign = render(inspect_bundle(damaged_bundle))
    assert "tier \\x1b]0;title\\x07, " in foreign
    with pytest.raises(TierError, match="no such tier") as caught:
        find_tier("\x1b]0;title\x07")
    for text in (lines, foreign, str(caught.value)):
        assert all(line.isprintable() for line in text.split("\n"))


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle[\s\S]*flash-deploy build"):
        open_bundle(tmp_path)


def test_link_out_of_the_bundle(damaged_bundle: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    file = damaged_bundle / "denoiser.onnx.data"
    secret.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(BundleError, match="leads outside the bundle"):
        open_bundle(damaged_bundle)


def test_one_changed_byte_is_found(damaged_bundle: Path) -> None:
    file = damaged_bundle / "conditioner.onnx.data"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    complaints = check_files(open_bundle(damaged_bundle))
    assert [c.where for c in complaints] == ["conditioner.onnx.data"]


def test_strange_files_are_named(damaged_bundle: Path) -> None:
    (damaged_bundle / "tokenizer" / "extra.bin").write_bytes(b"x")
    assert [c.where for c in check_files(open_bundle(damaged_bundle))] == ["tokenizer/extra.bin"]
