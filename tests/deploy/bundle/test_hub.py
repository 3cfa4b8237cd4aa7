"""Bundles that were published: in a hub's cache, and downloaded to a folder."""

from __future__ import annotations

import shutil
import tempfile
import threading
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from deploy.build.verify import verify
from deploy.bundle import plain_files
from deploy.bundle.folder import Bundle, check_files, open_bundle
from deploy.bundle.inspect import inspect_path
from deploy.bundle.manifest import FileRecord
from deploy.bundle.seal import check_place
from deploy.errors import BundleError, InputError
from deploy.page.serve import Server
from deploy.runtime.pipeline import Pipeline
from exporters.choices import Runtime
from exporters.hashing import hash_file
from exporters.reference.decibels import psnr_db
from tests.helpers.hub import hub_cache
from tests.helpers.kept_bundle import V1


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder, in which nothing may be left."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("inside", ["", "bundles/desktop"])
def test_a_bundle_in_a_hub_cache_draws(runtime: Runtime, inside: str, temporary: Path, tmp_path: Path) -> None:
    if find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    folder = hub_cache(V1, tmp_path / "hub", inside)
    picture = Pipeline(folder, runtime=runtime).generate("a cat", seed=3)
    assert psnr_db(np.load(V1.with_suffix(".npy")), picture) > (80 if runtime == "onnxruntime" else 40)
    assert list(temporary.iterdir()) == []


def test_weights_are_linked_not_copied(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_files, "LINKED_BYTES", 8000)
    bundle = open_bundle(hub_cache(V1, tmp_path / "hub"))
    with bundle.plain("denoiser") as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["denoiser.onnx", "denoiser.onnx.data"]
        assert not any(path.is_symlink() for path in folder.iterdir())
        assert (folder / "denoiser.onnx.data").samefile(bundle.file("denoiser.onnx.data"))
        assert folder.stat().st_mode & 0o777 == 0o700
        private = folder
    with bundle.plain("conditioner") as folder:  # small: whoever writes it must not write the blob
        assert not (folder / "conditioner.onnx.data").samefile(bundle.file("conditioner.onnx.data"))
    assert not private.exists()
    assert bundle.file("denoiser.onnx.data").is_file()
    with pytest.raises(KeyboardInterrupt), bundle.plain("denoiser"):
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("crossing", ["tmp", "everywhere"])
def test_where_files_cannot_be_linked(crossing: str, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file system: beside the cache's content if need be; else copies."""
    link = Path.hardlink_to

    def crossed(self: Path, target: Path) -> None:
        if crossing == "everywhere" or self.is_relative_to(temporary):
            raise OSError(18, "Invalid cross-device link")
        link(self, target)

    monkeypatch.setattr(plain_files, "LINKED_BYTES", 0)
    monkeypatch.setattr(Path, "hardlink_to", crossed)
    bundle = open_bundle(hub_cache(V1, tmp_path / "hub"))
    before = sorted((tmp_path / "hub").rglob("*"))
    with bundle.plain("denoiser") as folder:
        assert (folder / "denoiser.onnx.data").read_bytes() == (V1 / "denoiser.onnx.data").read_bytes()
        assert folder.is_relative_to(temporary) == (crossing == "everywhere")
    assert sorted((tmp_path / "hub").rglob("*")) == before
    assert list(temporary.iterdir()) == []


def test_no_room_for_copies(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    bundle = open_bundle(hub_cache(V1, tmp_path / "hub"))
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match=r"No space left on device \(expected 0.12 MB, got .* MB free\)[\s\S]*TMPDIR"):
        Pipeline(bundle).generate("a cat")
    assert list(temporary.iterdir()) == []


def test_a_bundle_of_its_own_is_handed_over_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(V1)
    for folder in (V1, tmp_path / "link"):
        with open_bundle(folder).plain("denoiser") as plain:
            assert plain == folder


def test_whatever_reads_a_bundle_reads_it_in_a_cache(tmp_path: Path) -> None:
    folder = hub_cache(V1, tmp_path / "hub")
    assert verify(folder).complaints == []
    assert inspect_path(folder)["graphs"] == inspect_path(V1)["graphs"]
    bundle = open_bundle(folder)
    with Server(bundle) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with urllib.request.urlopen(f"{server.url}denoiser.onnx.data", timeout=10) as answer:
            assert answer.read() == (V1 / "denoiser.onnx.data").read_bytes()
        server.shutdown()
        thread.join()


def test_forecasts_in_a_cache(tmp_path: Path) -> None:
    from deploy.forecast.predict import costs

    assert costs(open_bundle(hub_cache(V1, tmp_path / "hub"))) == costs(open_bundle(V1))


def test_other_links_lead_outside(tmp_path: Path) -> None:
    folder = hub_cache(V1, tmp_path / "hub")
    (tmp_path / "secret").write_bytes((V1 / "denoiser.onnx.data").read_bytes())
    file = folder / "denoiser.onnx.data"
    bundle = open_bundle(folder)
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match=r"denoiser.onnx.data: leads outside the bundle"):
        open_bundle(folder)
    with pytest.raises(BundleError, match=r"denoiser.onnx.data: leads outside the bundle"):
        Pipeline(bundle).generate("a cat")  # opened before
    file.unlink()
    file.symlink_to(file.name)
    with pytest.raises(BundleError, match=r"denoiser.onnx.data: missing"):
        open_bundle(folder)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to(V1 / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest.json: leads outside the bundle"):
        open_bundle(folder)


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """As ``hf download --local-dir`` and ``git clone`` leave it."""
    folder = Path(shutil.copytree(V1, tmp_path / "downloaded"))
    for path in (
        "README.md",
        ".gitattributes",
        ".cache/huggingface/download/denoiser.onnx.metadata",
        ".git/objects/ab/cdef",
        "card/0.png",
        "configuration.json",
        "tokenizer/.DS_Store",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")
    return folder


def test_what_hubs_put_there_is_no_complaint(downloaded: Path) -> None:
    assert verify(downloaded).complaints == []
    for path in ("image.png", "tokenizer/README.md", "scheduler/card/0.png", ".env"):
        (downloaded / path).parent.mkdir(exist_ok=True)
        (downloaded / path).write_text("x")
    expected = [".env", "image.png", "scheduler/card/0.png", "tokenizer/README.md"]
    assert [complaint.where for complaint in check_files(open_bundle(downloaded))] == expected


def test_a_clone_without_its_large_files(downloaded: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 8192\n"
    (downloaded / "denoiser.onnx.data").write_text(pointer)
    with pytest.raises(BundleError, match=r"denoiser.onnx.data: is a git-lfs pointer, not the file\nWhat to do: `git lfs pull`"):
        open_bundle(downloaded)


def test_a_page_that_is_the_bundles_own_is_checked(downloaded: Path) -> None:
    bundle = open_bundle(downloaded)
    record = FileRecord(path="README.md", size_bytes=1, sha256=hash_file(downloaded / "README.md"))
    (downloaded / "README.md").write_text("y")
    from msgspec.structs import replace

    own = Bundle(downloaded, replace(bundle.manifest, files=(*bundle.manifest.files, record)))
    assert [complaint.where for complaint in check_files(own)] == ["README.md"]


def test_pages_and_histories_are_not_replaced(downloaded: Path) -> None:
    expected = r"holds more than a bundle[\s\S]*/\.git: not a file[\s\S]*/README.md: not a file[\s\S]*/card: not a file"
    with pytest.raises(InputError, match=expected) as caught:
        check_place(downloaded, force=True)
    assert len(caught.value.complaints) == 3
    for name in ("README.md", "card", ".git"):
        path = downloaded / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    check_place(downloaded, force=True)  # what a download can bring back


def test_newer_and_damaged_bundles_are_replaced_without_what_is_yours(downloaded: Path) -> None:
    shutil.rmtree(downloaded / ".git")
    shutil.rmtree(downloaded / "card")
    manifest = downloaded / "manifest.json"
    newer = manifest.read_text().replace('"version": 1,', '"version": 9,')
    for content in (newer, '{"format": "flash-deploy bundle", "version": 1}'):
        manifest.write_text(content)
        with pytest.raises(InputError, match=r"README.md: not a file of this bundle"):
            check_place(downloaded, force=True)
    (downloaded / "README.md").unlink()
    check_place(downloaded, force=True)
    manifest.write_text(newer)
    check_place(downloaded, force=True)
