"""Prompts of a file, by number."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillation.data.open import open_source
from distillation.data.settings import PromptsData
from distillation.data.source import DataError, Source


def opened(folder: Path, content: bytes) -> Source:
    (folder / "p.txt").write_bytes(content)
    return open_source(PromptsData(file="p.txt"), folder)


def test_lines_in_any_order(tmp_path: Path) -> None:
    source = opened(tmp_path, "\ufeffa red circle\r\n\n  zwei grüne Kreuze \n \nthree".encode())
    assert len(source) == 3
    assert [source.prompt(number) for number in (2, 0, 1)] == ["three", "a red circle", "zwei grüne Kreuze"]
    assert (source.has_prompts, source.has_pictures, source.has_latents, source.has_embeddings) == (True, False, False, False)
    assert (source.picture(0), source.latent(0), source.embeddings(0)) == (None, None, None)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = opened(tmp_path, b"a\nb\n").fingerprint
    (tmp_path / "elsewhere").mkdir()
    assert opened(tmp_path / "elsewhere", b"a\nb\n").fingerprint == first
    assert opened(tmp_path, b"a\nc\n").fingerprint != first


@pytest.mark.parametrize("number", [3, -1])
def test_no_such_sample(tmp_path: Path, number: int) -> None:
    with pytest.raises(IndexError, match=f"there are 3 samples, counted from 0; got {number}"):
        opened(tmp_path, b"a\nb\nc").prompt(number)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\n \n", "is empty"), (b"a\nb\xff\n", r"p.txt: line 2: is not UTF-8 \(got byte 0xff at 1\)")],
)
def test_what_is_no_file_of_prompts(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path, content)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.txt: No such file"):
        open_source(PromptsData(file="p.txt"), tmp_path)
    source = opened(tmp_path, b"a")
    (tmp_path / "p.txt").unlink()
    with pytest.raises(DataError, match=r"p\.txt: No such file"):
        source.prompt(0)
