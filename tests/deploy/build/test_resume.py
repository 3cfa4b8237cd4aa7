"""An interrupted build goes on where it stopped, with what is still the wanted."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import deploy.build.run
from deploy.build import build
from deploy.build.plan import plan
from deploy.build.resume import resume_key
from deploy.bundle.folder import check_files
from deploy.bundle.seal import partial_folder
from exporters.student.student import Student
from tests.helpers.builds import Log, left_behind, small


def ctrl_c_in_an_extension_module() -> None:
    """Some turn the interrupt into an error of their own that knows nothing of it."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    raise RuntimeError("could not convert the operator")


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupt", [ctrl_c, ctrl_c_in_an_extension_module])
def test_interrupted_build_goes_on_where_it_stopped(
    interrupt: Callable[[], None], students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    request = small(students, output)
    write = deploy.build.run._Build._write

    def interrupted(job, graph, draft):
        if graph.name == "denoiser":
            interrupt()
        return write(job, graph, draft)

    monkeypatch.setattr(deploy.build.run._Build, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(request)
    assert not output.exists()
    monkeypatch.setattr(deploy.build.run._Build, "_write", write)
    log = Log()
    bundle = build(request, log)
    assert log.traced == ["denoiser", "vae_decoder"]
    assert check_files(bundle) == []
    assert left_behind(tmp_path) == ["bundle"]


def test_other_options_take_nothing_over(students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "bundle"
    monkeypatch.setattr(deploy.build.run, "describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(small(students, output))
    monkeypatch.undo()
    log = Log()
    bundle = build(small(students, output, precision="fp32", max_sequence_length=8), log)
    assert len(log.traced) == 4
    assert check_files(bundle) == []


def test_damaged_leftovers_are_not_taken_over(
    students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    monkeypatch.setattr(deploy.build.run, "describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(small(students, output))
    monkeypatch.undo()
    data = partial_folder(output) / "conditioner.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    log = Log()
    build(small(students, output), log)
    assert log.traced == ["conditioner"]


STOPPED_AT_THE_DENOISER = """
import sys, time
import deploy.build.run
from deploy.cli.main import main

write = deploy.build.run._Build._write

def stopped(job, graph, draft):
    if graph.name == "denoiser":
        print("here", flush=True)
        time.sleep(600)
    return write(job, graph, draft)

deploy.build.run._Build._write = stopped
sys.argv = ["flash-deploy", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(("kill", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)], ids=["killed", "Ctrl-C"])
def test_stopped_build_leaves_no_half_bundle(kill: int, code: int, students: dict[str, Student], tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    size = ["--height", "32", "--width", "48", "--max-sequence-length", "7", "--parity", "never"]
    command = [sys.executable, "-c", STOPPED_AT_THE_DENOISER, "build", str(students["tiny"].path), "-o", str(output), *size]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n", process.communicate()[1]
    process.send_signal(kill)
    _, errors = process.communicate()
    assert process.returncode == code
    assert not output.exists()
    assert (partial_folder(output) / "conditioner.done.json").exists()
    assert ("goes on where this one stopped" in errors) == (kill == signal.SIGINT)
    assert "Traceback" not in errors
    bundle = build(small(students, output, force=True))
    assert check_files(bundle) == []
    assert left_behind(tmp_path) == ["bundle"]


def test_another_profile_takes_nothing_over(
    students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, profile = tmp_path / "bundle", tmp_path / "profile.toml"
    rule = '[[rule]]\ncomponent = "*"\nweights = "*"\nscheme = "{}"\n'
    profile.write_text(rule.format("int4g32"))
    monkeypatch.setattr(deploy.build.run, "describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(small(students, output, profile=profile))
    monkeypatch.undo()
    profile.write_text(rule.format("int8"))
    log = Log()
    build(small(students, output, profile=profile), log)
    assert len(log.traced) == 4


def test_the_opset_is_in_the_resume_key(students: dict[str, Student], tmp_path: Path) -> None:
    """A graph of another opset is not taken over from an interrupted build."""
    keys = []
    for opset in (None, 23, 21):
        planned = plan(small(students, tmp_path / "b", opset=opset))
        keys.append(resume_key(planned, planned.graphs[0], "sha256:0"))
    assert keys[0] == keys[1] != keys[2]
