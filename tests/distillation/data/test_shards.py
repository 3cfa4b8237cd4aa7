"""Tar files of samples, read at any place; what is damaged, foreign or has no partner is refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distillation.data.open import open_source
from distillation.data.settings import ShardsData
from distillation.data.source import DataError, Source
from tests.distillation.data.on_disk import encoded, plain, write_tar

A, B, C = (encoded(plain((10 * level, 0, 0))) for level in (1, 2, 3))


class Explosive:
    """Says so where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("unpickled",))


def opened(folder: Path, path: str = "shards") -> Source:
    return open_source(ShardsData(path=path, resolution=8), folder)


def reds(source: Source) -> list[int]:
    return [
        round((float(picture[0, 0, 0]) + 1) * 12.75) for n in range(len(source)) if (picture := source.picture(n)) is not None
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three samples in two shards, in three ways to say a caption, among what is never looked at."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(
        folder / "s-000.tar",
        {
            "__0001__/note": "x", "b.PNG": A, "b.txt": "one", "b.json": '{"caption": "not this"}', "b.cls": "3", "readme": "x",
            "a.png": B, "a.seg.png": b"another picture", "a.json": '{"width": 8, "caption": "zwei \\u00e4"}',
            "a.pyd": pickle.dumps(Explosive()), "a.pth": pickle.dumps(Explosive()), "._a.png": b"a file manager's",
        },
    )  # fmt: skip
    write_tar(folder / "s-001.tar", {f"{'long/' * 30}c.png": C, f"{'long/' * 30}c.txt": "three"}, tarfile.PAX_FORMAT)
    return tmp_path


def test_samples_by_their_place(shards: Path) -> None:
    source = opened(shards)
    assert [source.prompt(number) for number in (2, 0, 1)] == ["three", "one", "zwei ä"]
    assert reds(source) == [1, 2, 3]
    assert (source.has_pictures, source.latent(0)) == (True, None)
    with pytest.raises(IndexError, match="there are 3 samples"):
        source.prompt(-1)


@pytest.mark.parametrize("path", ["shards/*.tar", "shards/s-{000..001}.tar", "shards/s-00{0,1}.tar", "{shards}/s-*.tar"])
def test_patterns(shards: Path, path: str) -> None:
    assert opened(shards, path).fingerprint == opened(shards).fingerprint
    assert opened(Path("/"), str(shards / path)).fingerprint == opened(shards).fingerprint


def test_the_fingerprint_is_of_names_and_sizes(shards: Path, tmp_path: Path) -> None:
    first = opened(shards).fingerprint
    assert opened(shards, "shards/s-000.tar").fingerprint != first
    assert open_source(ShardsData(path="shards", resolution=16), shards).fingerprint != first
    (shards / "shards").rename(shards / "moved")
    assert opened(shards, "moved").fingerprint == first


def test_what_webdataset_writes(tmp_path: Path) -> None:
    """The package reads streams alone; what it writes, and what it reads of it, is what is read here at any place."""
    webdataset = pytest.importorskip("webdataset")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(5)]
    (tmp_path / "shards").mkdir()
    with webdataset.ShardWriter(f"file:{tmp_path}/shards/s-%06d.tar", maxcount=2, verbose=0) as writer:
        for number, picture in enumerate(pictures):
            said = {"txt": f"picture {number}"} if number % 2 else {"json": {"text": f"picture {number}", "number": number}}
            writer.write({"__key__": f"{number:06d}", "png": picture} | said)
    source = opened(tmp_path)
    assert [source.prompt(number) for number in range(5)] == [f"picture {number}" for number in range(5)]
    shards = sorted((tmp_path / "shards").iterdir())
    assert len(shards) == 3
    number = 0
    for shard in shards:
        with shard.open("rb") as stream:
            files = webdataset.tariterators.tar_file_expander([{"url": str(shard), "stream": stream}])
            for sample in webdataset.tariterators.group_by_keys(files):
                with Image.open(io.BytesIO(sample["png"])) as picture:
                    expected = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1) / 127.5 - 1
                got = source.picture(number)
                assert got is not None
                assert torch.equal(got, expected)
                text = sample["txt"].decode() if "txt" in sample else json.loads(sample["json"])["text"]
                assert source.prompt(number) == text
                number += 1
    assert number == len(source) == 5


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": A}, r"s\.tar: a: has a picture and no caption \(expected a\.txt or a\.json"),
        ({"a.txt": "x"}, r"s\.tar: a: has a caption and no picture"),
        ({"a.png": A, "a.jpg": A, "a.txt": "x"}, r"a: has two pictures \(expected one, got a\.png and a\.jpg"),
        ([("a.png", A), ("a.txt", "x"), ("a.png", B)], r"a\.png: is there twice"),
        ({"../a.png": A, "../a.txt": "x"}, r"\.\./a\.png: has a name that leads out of the shard"),
        ({"/a.png": A, "/a.txt": "x"}, r"/a\.png: has a name that leads out of the shard"),
        ({"a.cls": "3"}, r"There are no samples\.\n.*s\.tar: has no pictures"),
        ({}, r"There are no samples"),
    ],
)
def test_what_cannot_be_learned_from(tmp_path: Path, members: Any, message: str) -> None:
    write_tar(tmp_path / "s.tar", members)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "s.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_shard(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"a\.png: is neither a file nor a folder"):
        opened(tmp_path, "s.tar")


WHOLE = 8 * 512  # header, picture, header, caption, twice; then the end


def two_samples(folder: Path) -> bytes:
    file = write_tar(folder / "s.tar", {"a.png": A, "a.txt": "one", "b.png": B, "b.txt": "two"})
    content = file.read_bytes()
    assert content[WHOLE : WHOLE + 1024] == bytes(1024)
    return content


@pytest.mark.parametrize("size", [0, 100, 512, 3 * 512, 4 * 512, 5 * 512 + 10, WHOLE - 200, WHOLE, WHOLE + 100])
def test_a_shard_that_is_cut_short(tmp_path: Path, size: int) -> None:
    """At every kind of border; tarfile alone takes a cut between two members for the end."""
    content = two_samples(tmp_path)
    (tmp_path / "s.tar").write_bytes(content[:size])
    with pytest.raises(DataError, match=r"s\.tar: is damaged, cut short, or no tar file .*\n.*copy the shard again"):
        opened(tmp_path, "s.tar")


@pytest.mark.parametrize("at", [0, 2 * 512, 6 * 512 + 124, WHOLE])
def test_a_shard_that_is_damaged(tmp_path: Path, at: int) -> None:
    """Tarfile alone takes a damaged header inside for the end, and samples would be missing in silence."""
    content = bytearray(two_samples(tmp_path))
    content[at : at + 8] = b"\xffdamage\xff"
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"s\.tar: is damaged, cut short, or no tar file"):
        opened(tmp_path, "s.tar")


def test_two_archives_in_one_file(tmp_path: Path) -> None:
    content = two_samples(tmp_path)
    (tmp_path / "s.tar").write_bytes(content + content)
    with pytest.raises(DataError, match=r"got there is no header at byte 4096, nor the end"):
        opened(tmp_path, "s.tar")


def test_a_sample_that_is_damaged_stops_with_its_name(tmp_path: Path) -> None:
    members = {"a.png": A[:50], "a.txt": b"\xff", "b.png": B, "b.json": "[]", "c.png": C, "c.json": '{"words": "x"}'}
    write_tar(tmp_path / "s.tar", members)
    source = opened(tmp_path, "s.tar")
    assert source.picture(1) is not None
    with pytest.raises(DataError, match=r"s\.tar: a\.png: is damaged, or no picture"):
        source.picture(0)
    for number, message in enumerate((r"a\.txt: is not UTF-8", r"b\.json: Expected `object`", r"c\.json: has no caption")):
        with pytest.raises(DataError, match=rf"s\.tar: {message}"):
            source.prompt(number)


def test_a_shard_that_changes_under_way(tmp_path: Path) -> None:
    content = two_samples(tmp_path)
    source = opened(tmp_path, "s.tar")
    (tmp_path / "s.tar").write_bytes(content[: 5 * 512 + 10])
    assert source.prompt(0) == "one"
    for ask in (source.picture, source.prompt):
        with pytest.raises(DataError, match=r"s\.tar: has changed since it was opened"):
            ask(1)
    (tmp_path / "s.tar").unlink()
    with pytest.raises(DataError, match=r"has changed since it was opened .*No such file"):
        source.picture(0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", r"nowhere: no such file"),
        ("nowhere/*.tar", r"There are no shards\.\n.*a folder of \.tar files, or a pattern"),
        ("s-{000..001}.tar", r"s-001\.tar: no such file"),
        ("packed", r"s\.tar\.gz: is compressed"),
        ("packed/s.tar.gz", r"s\.tar\.gz: is compressed"),
        ("empty", r"There are no shards"),
        ("linked", r"s\.tar: is a link that leads out of the folder"),
        ("linked/*.tar", r"s\.tar: is a link that leads out of the folder"),
    ],
)
def test_paths_that_name_no_shards(tmp_path: Path, path: str, message: str) -> None:
    for name in ("packed", "empty", "linked"):
        (tmp_path / name).mkdir()
    with tarfile.open(tmp_path / "packed" / "s.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    write_tar(tmp_path / "s-000.tar", {"a.png": A, "a.txt": "x"})
    (tmp_path / "linked" / "s.tar").symlink_to(tmp_path / "s-000.tar")
    with pytest.raises(DataError, match=message):
        opened(tmp_path, path)
