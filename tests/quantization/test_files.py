"""Files appear whole, in place of links and never through them, and nothing is left of those that fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quantization.errors import InputError
from quantization.files import (
    append_to,
    check_writable,
    new_file,
    reserve,
    write_array,
    write_arrays,
    write_bytes,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "x.txt").symlink_to("victim")
    write_text(tmp_path / "x.txt", "grün\n")
    assert not (tmp_path / "x.txt").is_symlink()
    assert (tmp_path / "x.txt").read_bytes() == "grün\n".encode()
    assert (tmp_path / "victim").read_text() == "precious"
    (tmp_path / "loop").symlink_to("loop")
    write_bytes(tmp_path / "loop", b"1")
    assert (tmp_path / "loop").read_bytes() == b"1"


def test_drafts_are_hidden_and_have_names_that_nobody_can_foresee(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with new_file(tmp_path / ("n" * 250 + ".txt")) as stream:
            stream.write(b"1")
            seen += [name for name in names(tmp_path) if name.startswith(".")]
    assert len(set(seen)) == 2
    assert names(tmp_path) == ["n" * 250 + ".txt"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with new_file(tmp_path / "x") as first, new_file(tmp_path / "x") as second:
        first.write(b"first" * 10_000)
        second.write(b"second")
    assert (tmp_path / "x").read_bytes() == b"first" * 10_000
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), ValueError("x")], ids=str
)
def test_what_fails_leaves_the_old_file_alone(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def write() -> None:
        with new_file(tmp_path / "x") as stream:
            stream.write(b"half")
            raise error

    is_of_disk = isinstance(error, OSError)
    with pytest.raises(InputError if is_of_disk else type(error), match="No space left on device" if is_of_disk else None):
        write()
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_what_cannot_be_read_is_not_said_to_be_unwritable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "x"):
        (tmp_path.parent / "elsewhere" / "y").read_bytes()
    assert names(tmp_path) == []


def test_the_umask_is_honoured(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_arrays_survive(tmp_path: Path) -> None:
    array = np.asfortranarray(np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32))
    write_array(tmp_path / "a.npy", array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    write_arrays(tmp_path / "a.npz", {"one": array, "two": array[0]})
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["two"], array[0])


def test_a_full_disk_is_one_complaint(small_disk: Path) -> None:
    """Whoever writes: Python, numpy past Python, or a map, of which the process would die."""
    for write in (
        lambda file: write_bytes(file, bytes(1 << 17)),
        lambda file: write_array(file, np.zeros(1 << 16)),
        lambda file: write_arrays(file, {"a": np.zeros(1 << 16)}),
    ):
        with pytest.raises(InputError, match=r"x cannot be written[\s\S]*No space left on device[\s\S]*free some space"):
            write(small_disk / "x")
        assert names(small_disk) == []
    np.lib.format.open_memmap(small_disk / "sparse.npy", "w+", np.float32, (1 << 17,))
    with pytest.raises(InputError, match=r"sparse.npy: No space left on device"):
        reserve(small_disk / "sparse.npy")


def test_reserved_space_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")  # macOS has none
    mapped = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (3000,))
    reserve(tmp_path / "a.npy")
    mapped[:] = 1
    mapped.flush()
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.ones(3000, np.float32))


def test_lines_are_not_added_through_a_link(tmp_path: Path) -> None:
    with append_to(tmp_path / "lines") as out:
        out.write("one\n")
    with append_to(tmp_path / "lines") as out:
        out.write("two\n")
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"
    (tmp_path / "link").symlink_to("lines")
    with pytest.raises(OSError, match="symbolic links"):
        append_to(tmp_path / "link")


def test_places_that_cannot_be_written_to_are_told_before(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "folder": "--json: is a folder",
        "no/x": "--json: no such folder",
        "n" * 300: "--json: File name too long",
        "pipe": "pipe: is no file",
    }.items():
        with pytest.raises(InputError, match=message):
            check_writable(tmp_path / name, "--json", "The report cannot be written.")
    check_writable(tmp_path / "x", "--json", "The report cannot be written.")
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_stream_of_this_process_is_written_to(tmp_path: Path) -> None:
    program = "from pathlib import Path; from quantization.files import write_text; write_text(Path('/dev/stdout'), 'said')"
    if not Path("/dev/stdout").exists():
        pytest.skip("no /dev/stdout")
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "said"
    assert Path("/dev/stdout").is_symlink()
