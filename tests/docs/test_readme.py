"""The end-to-end example of the README: what its download brings is enough to build, and no more than is needed."""

from __future__ import annotations

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest

from deploy.build.plan import plan
from deploy.build.request import BuildRequest
from deploy.errors import InputError
from exporters.student.student import BUILTIN_STUDENT
from tests.docs.pages import ROOT, pages

README = (ROOT / "README.md").read_text("utf-8")
T5 = "text_encoder_3/*"
BESIDE = [
    "sd3.5_large_turbo.safetensors",
    "text_encoders/t5xxl_fp16.safetensors",
    "text_encoders/clip_g.safetensors",
    "SD3.5L_Turbo_example_workflow.json",
    "sd3.5_large_turbo_demo.png",
]
"""What the repository on the hub has beside the pipeline's folders (its card's list of files)."""


def patterns() -> list[str]:
    [block] = [b for page in pages() if page.path.name == "README.md" for b in page.blocks if "hf download" in b.text]
    included = re.findall(r'--include "([^"]+)"', block.text)
    assert "transformer/*" in included
    return included


def downloaded(folder: Path, wanted: list[str]) -> Path:
    """What those patterns bring of a repository that is laid out so; hubs match them against whole paths."""
    student = folder / "large-turbo"
    for file in (file for file in BUILTIN_STUDENT.rglob("*") if file.is_file() and file.name != "student.json"):
        path = file.relative_to(BUILTIN_STUDENT)
        if any(fnmatch(path.as_posix(), pattern) for pattern in wanted):
            (student / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, student / path)
    return student


def test_download_is_enough(tmp_path: Path) -> None:
    student = downloaded(tmp_path, [pattern for pattern in patterns() if pattern != "README.md"])
    planned = plan(BuildRequest(output=tmp_path / "b", student=student, height=64, width=64))
    assert not planned.options.keep_t5
    assert not [note for note in planned.notes if "guidance" in note]  # the name says that it needs none
    with pytest.raises(InputError, match="text_encoder_3: cannot be kept"):
        plan(BuildRequest(output=tmp_path / "b", student=student, height=64, width=64, keep_t5=True))


def test_download_with_t5_is_enough(tmp_path: Path) -> None:
    assert f'`--include "{T5}"`' in README
    student = downloaded(tmp_path, [*patterns(), T5])
    assert plan(BuildRequest(output=tmp_path / "b", student=student, height=64, width=64, keep_t5=True)).options.keep_t5


def test_download_brings_nothing_twice() -> None:
    unwanted = [*BESIDE, "text_encoder_3/model-00001-of-00002.safetensors"]
    assert not [path for path in unwanted if any(fnmatch(path, pattern) for pattern in patterns())]


def test_every_pattern_is_needed(tmp_path: Path) -> None:
    for i, pattern in enumerate(pattern for pattern in patterns() if pattern not in ("LICENSE*", "README.md")):
        student = downloaded(tmp_path / str(i), [p for p in patterns() if p != pattern])
        with pytest.raises(InputError):
            plan(BuildRequest(output=tmp_path / "b", student=student, height=64, width=64))
