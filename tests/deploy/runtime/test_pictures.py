"""Pictures as files: what lies about where they are written stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.errors import InputError
from deploy.runtime.pictures import check_output, load_image, load_latents, save_pictures
from tests.helpers.command import flash_deploy
from tests.helpers.kept_bundle import V1

PICTURES = np.random.default_rng(0).random((2, 8, 16, 3)).astype(np.float32)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_planted_links_are_not_followed(suffix: str, tmp_path: Path) -> None:
    """Neither at the name of a draft that could be guessed, nor at the target."""
    (tmp_path / "victim").write_text("precious")
    planted = [f".x.partial{suffix}", f".x{suffix}.partial", f".x.draft{suffix}", f"x{suffix}"]
    for name in planted:
        (tmp_path / name).symlink_to("victim")
    done = flash_deploy("generate", V1, "a cat", "-o", tmp_path / f"x{suffix}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "victim").read_text() == "precious"
    assert [(tmp_path / name).is_symlink() for name in planted] == [True, True, True, False]
    assert names(tmp_path) == sorted([*planted, "victim"])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_pictures_are_what_their_names_say(suffix: str, tmp_path: Path) -> None:
    files = save_pictures(PICTURES, tmp_path / f"x{suffix}")
    assert [file.name for file in files] == [f"x-0{suffix}", f"x-1{suffix}"]
    with Image.open(files[1]) as picture:
        assert (picture.size, picture.format) == ((16, 8), {".PNG": "PNG", ".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG"))


def test_every_file_is_looked_at_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "x-1.png").mkdir()
    check_output(tmp_path / "x.png", 1)
    with pytest.raises(InputError, match=r"-o: is a folder \(expected a file, got .*x-1.png"):
        check_output(tmp_path / "x.png", 2)
    check_output(tmp_path / "x.npy", 2)
    assert names(tmp_path) == ["x-1.png"]


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for name in ("x.png", "x.npy"):
        with pytest.raises(InputError, match=rf"{name}: No space left on device[\s\S]*free some space"):
            save_pictures(PICTURES[:1], tmp_path / name)
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in folders")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe: is not a file \(expected a plain \.npy array\)"):
        load_latents(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"--image \S+pipe: is not a file \(expected a PNG, JPEG or WebP file\)"):
        load_image(tmp_path / "pipe", "--image")
