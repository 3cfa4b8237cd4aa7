from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cli import reference
from deploy.cli.reference import PAGE, cli_reference

ROOT = Path(__file__).parents[3]


def test_page_of_commands_is_current() -> None:
    assert (ROOT / PAGE).read_text("utf-8") == cli_reference(), "run `make docs`"


def test_written_page_is_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / PAGE).parent.mkdir()
    reference.main()
    assert (tmp_path / PAGE).read_text("utf-8") == cli_reference()


def test_every_command_has_a_section_and_a_link_to_it() -> None:
    page = cli_reference()
    for command in ("build", "generate", "verify", "web-runtime", "make-student"):
        assert f"\n## `flash-deploy {command}`\n" in page
        assert f"](#flash-deploy-{command}):" in page
