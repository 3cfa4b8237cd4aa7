from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantization import folders
from quantization.errors import InputError
from quantization.files import draft_name
from quantization.folders import claim_folder, new_folder, remove_tree


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "above" / "new"
    with new_folder(target) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "x").write_text("1")
        assert not target.exists()
    assert (target / "inner" / "x").read_text() == "1"
    assert names(target.parent) == ["new"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_what_fails_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "above" / "new") as draft:
            (draft / "x").write_text("1")
            raise error

    with pytest.raises(InputError if error is OSError else error):
        write()
    assert names(tmp_path) == []


def test_what_came_meanwhile_stays(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "new"):
            (tmp_path / "new").mkdir()
            (tmp_path / "new" / "theirs").touch()

    with pytest.raises(InputError, match="has come to be meanwhile"):
        write()
    assert names(tmp_path / "new") == ["theirs"]
    assert names(tmp_path) == ["new"]


def test_drafts_of_killed_processes_go_and_those_in_work_stay(tmp_path: Path) -> None:
    left = draft_name(tmp_path / "new")
    left.mkdir()
    (left / "gigabytes").touch()
    others = draft_name(tmp_path / "newer")
    others.mkdir()
    program = f"""
import sys
from pathlib import Path
from quantization.folders import new_folder
with new_folder(Path({str(tmp_path / "new")!r})) as draft:
    print(draft.name, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        in_work = process.stdout.readline().strip()
        assert names(tmp_path) == sorted([others.name, in_work])
        with new_folder(tmp_path / "new", replace=True):
            assert (tmp_path / in_work).is_dir()
        assert names(tmp_path) == sorted([others.name, in_work, "new"])
        process.kill()
    with new_folder(tmp_path / "new", replace=True):
        pass
    assert names(tmp_path) == sorted([others.name, "new"])


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_older_folder_is_replaced(can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "old").touch()
    with new_folder(tmp_path / "new", replace=True) as draft:
        (draft / "x").touch()
        assert names(tmp_path / "new") == ["old"]
    assert names(tmp_path / "new") == ["x"]
    assert names(tmp_path) == ["new"]


def test_folders_change_places_in_one_step(tmp_path: Path) -> None:
    """Linux and macOS: at no moment is there none."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not folders._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange")
    assert names(tmp_path / "one") == ["other"]


def test_where_it_cannot_the_older_one_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "old").touch()
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if target == tmp_path / "new" and (self / "x").exists():
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "new", replace=True) as draft:
        (draft / "x").touch()
    assert names(tmp_path / "new") == ["old"]
    assert names(tmp_path) == ["new"]


def test_a_name_that_others_can_foresee_may_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to("home")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "file").touch()
    for name, problem in {"link": "is a link", "nowhere": "is a link", "file": "is no folder"}.items():
        with pytest.raises(InputError, match=f"{name}: {problem}"):
            claim_folder(tmp_path / name)
    claim_folder(tmp_path / "work")
    claim_folder(tmp_path / "work")  # going on
    tmp_path.chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    (tmp_path / "work").stat()
    lstat = os.lstat

    class Foreign:
        st_mode, st_uid = lstat(tmp_path / "work").st_mode, 999

    monkeypatch.setattr(os, "lstat", lambda path: Foreign if Path(path).name == "work" else lstat(path))
    with pytest.raises(InputError, match="belongs to another user"):
        claim_folder(tmp_path / "work")
    tmp_path.chmod(0o755)
    claim_folder(tmp_path / "work")  # in a folder of one's own, whoever made it was let in
    assert not (tmp_path / "missing").exists()


def test_read_only_folders_go_and_what_links_lead_to_stays(tmp_path: Path) -> None:
    inner = tmp_path / "old" / "inner"
    inner.mkdir(parents=True)
    (inner / "x").touch()
    (tmp_path / "home").mkdir()
    (inner / "link").symlink_to(tmp_path / "home")
    inner.chmod(0o555)
    inner.parent.chmod(0o555)
    remove_tree(tmp_path / "old")
    (tmp_path / "link").symlink_to("home")
    remove_tree(tmp_path / "link")
    assert names(tmp_path) == ["home"]
