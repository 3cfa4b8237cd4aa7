"""Sealing: at every moment there is a whole bundle at its place, and nothing else is left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.bundle.folder import Bundle, check_files
from deploy.bundle.manifest import read_manifest
from deploy.bundle.seal import locked, partial_folder, seal
from quantization import folders
from quantization.files import draft_name
from tests.helpers.kept_bundle import V1


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sealed(target: Path) -> Bundle:
    """A copy of the old bundle, sealed over whatever is there."""
    partial = Path(shutil.copytree(V1, partial_folder(target)))
    with locked(partial):
        return seal(partial, target, read_manifest(partial), force=True)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_bundle_is_replaced(can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    assert check_files(sealed(tmp_path / "b")) == []
    (tmp_path / "b" / "image.png").touch()
    for folder in (tmp_path / "b" / "tokenizer", tmp_path / "b"):
        folder.chmod(0o555)
    left = draft_name(tmp_path / "b")
    shutil.copytree(V1, left)  # of a build that was killed
    linked = draft_name(tmp_path / "b")
    linked.symlink_to("home")
    (tmp_path / "home").mkdir()
    (tmp_path / ".b.old").symlink_to("home")
    assert check_files(sealed(tmp_path / "b")) == []
    assert names(tmp_path) == sorted([".b.old", linked.name, "b", "home"])
    assert names(tmp_path / "home") == []


def test_an_exchange_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it: the old bundle stays and the new one can still be sealed. After it: the new one is there."""
    sealed(tmp_path / "b")
    (tmp_path / "b" / "old").touch()

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sealed(tmp_path / "b")
    assert names(tmp_path) == [".b.partial", "b"]
    assert (tmp_path / "b" / "old").exists()
    shutil.rmtree(tmp_path / ".b.partial")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "remove_tree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sealed(tmp_path / "b")
    assert not (tmp_path / "b" / "old").exists()
    assert check_files(sealed(tmp_path / "b")) == []
    assert names(tmp_path) == ["b"]
