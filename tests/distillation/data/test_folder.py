"""Folders of pictures and captions, and what does not fit together in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distillation.data.open import open_source
from distillation.data.settings import FolderData
from distillation.data.source import DataError, Source
from tests.distillation.data.on_disk import encoded, plain, write_folder

A, B, C = (encoded(plain((10 * level, 0, 0))) for level in (1, 2, 3))
BESIDE: dict[str, bytes | str] = {
    "b.PNG": B, "b.txt": "\ufeffzwei\n", "a.png": A, "a.txt": "one", "more/a.jpeg": C, "more/a.txt": "", "notes.md": "x",
}  # fmt: skip
LISTED: dict[str, bytes | str] = {
    "b.png": B, "a.png": A, "more/a.png": C,
    "metadata.jsonl": '{"file_name": "more/a.png", "text": "three"}\n\n{"file_name": "./a.png", "caption": "one"}\n'
    '{"file_name": "b.png", "text": "two", "width": 8}',
}  # fmt: skip
SETTINGS = FolderData(path="pictures", resolution=8)


def opened(folder: Path, files: dict[str, bytes | str]) -> Source:
    write_folder(folder / "pictures", files)
    return open_source(SETTINGS, folder)


def reds(source: Source) -> list[int]:
    return [
        round((float(picture[0, 0, 0]) + 1) * 12.75) for n in range(len(source)) if (picture := source.picture(n)) is not None
    ]


@pytest.mark.parametrize(
    ("files", "said"), [(BESIDE, ["one", "zwei", ""]), (LISTED, ["one", "two", "three"])], ids=["beside", "listed"]
)
def test_pairs_by_their_names_in_order(tmp_path: Path, files: dict[str, bytes | str], said: list[str]) -> None:
    source = opened(tmp_path, files)
    assert [source.prompt(number) for number in (2, 1, 0)] == said[::-1]
    assert reds(source) == [1, 2, 3]
    assert (source.has_pictures, source.has_latents, source.latent(0), source.embeddings(0)) == (True, False, None, None)
    with pytest.raises(IndexError, match="there are 3 samples"):
        source.picture(3)


@pytest.mark.parametrize("files", [BESIDE, LISTED], ids=["beside", "listed"])
def test_fingerprints(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    first = opened(tmp_path / "one", files)
    again = opened(tmp_path / "two", dict(reversed(files.items())))
    os.utime(tmp_path / "two" / "pictures" / "a.png", (0, 0))
    assert again.fingerprint == open_source(SETTINGS, tmp_path / "two").fingerprint == first.fingerprint
    (tmp_path / "two" / "pictures" / "a.png").write_bytes(A + b"\0")
    assert open_source(SETTINGS, tmp_path / "two").fingerprint != first.fingerprint
    wider = FolderData(path="pictures", resolution=16)
    assert open_source(wider, tmp_path / "one").fingerprint != first.fingerprint


def line(**content: str) -> str:
    return "{" + ", ".join(f'"{key}": "{value}"' for key, value in content.items()) + "}\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "pictures: No such file"),
        ({"a.gif": A, "a.txt": "x"}, r"There are no pictures.\n.*pictures: has none \(expected files that end in .png"),
        ({"a.png": A}, r"a\.png: is a picture without caption \(expected a\.txt beside it"),
        ({"a.png": A, "a.txt": "x", "b.txt": "x"}, r"b\.txt: is a caption without picture"),
        ({"a.png": A, "a.jpg": A, "a.txt": "x"}, r"a\.txt: is beside two pictures \(expected one, got a\.jpg and a\.png"),
        ({"a.png": A, "captions.jsonl": "", "metadata.jsonl": ""}, "has two lists of captions"),
        ({"a.png": A, "a.txt": "x", "metadata.jsonl": line(file_name="a.png", text="x")}, r"a\.png: has two captions"),
        ({"a.png": A, "metadata.jsonl": ""}, r"a\.png: is a picture without caption \(expected a line in metadata\.jsonl"),
        (
            {"a.png": A, "metadata.jsonl": line(file_name="b.png", text="x")},
            r"metadata\.jsonl: line 1: is a caption without picture",
        ),
        (
            {"a.png": A, "metadata.jsonl": line(file_name="../a.png", text="x")},
            r"line 1: leads out of the folder.*got \.\./a\.png",
        ),
        ({"a.png": A, "metadata.jsonl": line(file_name="/etc/a.png", text="x")}, "line 1: leads out of the folder"),
        ({"a.png": A, "metadata.jsonl": line(file_name="a.png", text="x") * 2}, "line 2: names a picture again"),
        ({"a.png": A, "metadata.jsonl": line(text="x")}, "line 1: has no file_name"),
        ({"a.png": A, "metadata.jsonl": line(file_name="a.png")}, r"line 1: has no caption \(expected text under one of text"),
        ({"a.png": A, "metadata.jsonl": '{"file_name": "a.png", "text": 3}'}, r"line 1: has no caption .*got int"),
        ({"a.png": A, "metadata.jsonl": "a.png,x\n"}, r"line 1: .*malformed.*expected a JSON object"),
        ({"a.png": A, "metadata.jsonl": "[1]\n"}, "line 1: Expected `object`, got `array`"),
        ({"a.png": A, "metadata.jsonl": b'{"file_name": "a.png", "text": "\xff"}'}, "line 1: is not UTF-8"),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, files: dict[str, bytes | str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path, files)


def test_every_complaint_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, {"a.png": A, "b.png": B, "c.txt": "x"})
    assert len(caught.value.complaints) == 3


def test_a_sample_that_is_damaged_stops_with_its_name(tmp_path: Path) -> None:
    source = opened(tmp_path, {"a.png": A[:30], "a.txt": "x", "b.png": B, "b.txt": b"caf\xe9"})
    with pytest.raises(DataError, match=r"pictures/a\.png: is damaged"):
        source.picture(0)
    assert source.picture(1) is not None
    with pytest.raises(DataError, match=r"pictures/b\.txt: is not UTF-8 \(got byte 0xe9 at 3\)\n.*save it in UTF-8"):
        source.prompt(1)
    (tmp_path / "pictures" / "b.png").unlink()
    with pytest.raises(DataError, match=r"pictures/b\.png: No such file"):
        source.picture(1)


@pytest.mark.parametrize(("name", "target"), [("b.png", "elsewhere/b.png"), ("b", "elsewhere")])
def test_links_that_lead_out(tmp_path: Path, name: str, target: str) -> None:
    write_folder(tmp_path / "elsewhere", {"b.png": B})
    write_folder(tmp_path / "pictures", {"a.png": A, "a.txt": "x", "b.txt": "x"})
    (tmp_path / "pictures" / name).symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=rf"pictures/{name}: is a link that leads out of the folder.*\n.*copy what the link"):
        open_source(SETTINGS, tmp_path)


def test_links_that_stay(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", {"a.png": A, "a.txt": "x", "b.txt": "y"})
    (tmp_path / "pictures" / "b.png").symlink_to("a.png")
    assert reds(open_source(SETTINGS, tmp_path)) == [1, 1]
    (tmp_path / "pictures" / "again").symlink_to(".")  # which would be the same pictures without end
    with pytest.raises(DataError, match="again: is a link to no file"):
        open_source(SETTINGS, tmp_path)


def test_a_hub_s_cache(tmp_path: Path) -> None:
    """Hub clients keep content apart, and links to it in place of files."""
    write_folder(tmp_path / "cache" / "blobs", {"1234": A, "5678": "said"})
    snapshot = tmp_path / "cache" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to("../../blobs/1234")
    (snapshot / "a.txt").symlink_to("../../blobs/5678")
    source = open_source(FolderData(path=str(snapshot), resolution=8), tmp_path)
    assert (source.prompt(0), reds(source)) == ("said", [1])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in folders")
def test_what_is_no_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", {"a.txt": "x"})
    os.mkfifo(tmp_path / "pictures" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is neither a file nor a folder"):
        open_source(SETTINGS, tmp_path)
