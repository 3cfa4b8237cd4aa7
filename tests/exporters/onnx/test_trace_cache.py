"""What is kept is what was traced, whole or not at all; a cache that cannot be used costs time and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from exporters.coreml.export import draft
from exporters.layouts.plan import plan_graphs
from exporters.layouts.spec import GraphOptions, GraphSpec
from exporters.onnx.passes import PassOptions, clean_up
from exporters.onnx.trace import trace
from exporters.onnx.trace_cache import VARIABLE, TraceCache, trace_cache
from exporters.onnx.writer import write
from exporters.student.student import Student
from exporters.student.weights.weight import Weight
from quantization.profile import uniform
from tests.conftest import ROOT

OPTIONS = GraphOptions("native", 32, 48, (1000.0,), clip_tokens=20, keep_t5=False, max_sequence_length=7)
KEY, OTHER = "0" * 64, "1" * 64


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that were really traced."""
    done: list[str] = []
    export = torch.export.export

    def counted(module, *arguments, **options):
        done.append(type(module).__name__)
        return export(module, *arguments, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    return done


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with nothing in it."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "traces"))
    return tmp_path / "traces"


@pytest.fixture
def denoiser(students: dict[str, Student]) -> GraphSpec:
    return plan_graphs(students["no qk_norm, no dual"], OPTIONS)[2]


def files(spec: GraphSpec, folder: Path) -> list[bytes]:
    folder.mkdir()
    model, _ = clean_up(trace(spec, torch.float16, wide=["transformer_blocks.0.attn"]), PassOptions(uniform("fp16")))
    return [(folder / file.path).read_bytes() for file in write(model, folder, spec.path).files]


def test_a_cache_changes_no_byte(
    denoiser: GraphSpec, folder: Path, exports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold, warm = files(denoiser, tmp_path / "cold"), files(denoiser, tmp_path / "warm")
    assert exports == ["Denoiser"]
    monkeypatch.delenv(VARIABLE)
    assert files(denoiser, tmp_path / "none") == cold == warm
    assert exports == ["Denoiser"] * 2


def test_a_cache_changes_no_program(
    denoiser: GraphSpec, folder: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Core ML packages are made of drafts: equal drafts, equal packages."""
    cold, warm = described(draft(denoiser)), described(draft(denoiser))
    assert exports == ["Denoiser"]
    monkeypatch.delenv(VARIABLE)
    assert described(draft(denoiser)) == cold == warm
    assert "Softmax" not in cold
    assert "Attention" in cold


def described(model: ir.Model) -> str:
    weights = {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()}
    return f"{model.graph}\n{weights}"


def test_the_weights_are_the_students_own(students: dict[str, Student], folder: Path, exports: list[str]) -> None:
    """Two students of one shape share a trace and no weight."""
    spec = plan_graphs(students["tiny"], OPTIONS)[1]

    def doubled(module: object) -> dict[str, Weight]:
        return {name: replace(weight, load=lambda w=weight: 2 * w.load()) for name, weight in spec.weights(module).items()}

    one, two = (
        {name: value.const_value.numpy() for name, value in trace(each, torch.float32).graph.initializers.items()}
        for each in (spec, replace(spec, weights=doubled))
    )
    assert exports == ["Conditioner"]
    assert one.keys() == two.keys()
    assert len(one) > 10
    assert all(np.array_equal(2 * one[name], two[name]) for name in one)


DAMAGES = {
    "truncated": lambda content: content[:-1],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
    "something else": lambda content: b"a diary" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_trace_is_replaced(damage, tmp_path: Path) -> None:
    cache = TraceCache(tmp_path)
    cache.put(KEY, b"trace" * 100)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert cache.get(KEY) is None
    cache.put(KEY, b"trace" * 100)
    assert cache.get(KEY) == b"trace" * 100


def test_a_graph_whose_trace_is_damaged_is_traced_again(denoiser: GraphSpec, folder: Path, exports: list[str]) -> None:
    whole = described(trace(denoiser, torch.float32))
    (entry,) = folder.iterdir()
    content = entry.read_bytes()
    entry.write_bytes(content[: len(content) // 2])
    assert described(trace(denoiser, torch.float32)) == whole
    assert exports == ["Denoiser"] * 2
    assert entry.read_bytes() == content


def test_a_trace_under_another_name_is_no_trace(tmp_path: Path) -> None:
    cache = TraceCache(tmp_path)
    cache.put(KEY, b"trace")
    (entry,) = tmp_path.iterdir()
    entry.rename(entry.with_name(entry.name.replace(KEY, OTHER)))
    assert (cache.get(KEY), cache.get(OTHER)) == (None, None)


def test_a_folder_that_cannot_be_written_to_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "traces").write_text("a file")
    cache = TraceCache(tmp_path / "traces")
    cache.put(KEY, b"trace")
    assert cache.get(KEY) is None
    assert (tmp_path / "traces").read_text() == "a file"


def keys(cache: TraceCache) -> list[str]:
    return sorted(file.stem for file in cache.folder.glob("*.trace"))


@pytest.mark.parametrize("bound", [{"most_entries": 3}, {"most_bytes": 3 * (32 + 5)}], ids=["entries", "bytes"])
def test_what_was_not_used_for_longest_goes_first(bound: dict, tmp_path: Path) -> None:
    cache = TraceCache(tmp_path, **bound)
    for i in range(3):
        cache.put(str(i) * 64, b"trace")
        os.utime(tmp_path / f"{str(i) * 64}.trace", (i, i))
    assert cache.get("0" * 64) == b"trace"  # used now: 1 is the oldest
    cache.put("3" * 64, b"trace")
    assert keys(cache) == ["0" * 64, "2" * 64, "3" * 64]


def test_only_what_is_its_own_is_discarded(tmp_path: Path) -> None:
    (tmp_path / "thesis.trace").write_text("years of work")
    (tmp_path / ".git").mkdir()
    draft = tmp_path / f".{KEY[:40]}.{'a' * 16}.partial"  # of a process that was killed
    draft.touch()
    os.utime(draft, (0, 0))
    cache = TraceCache(tmp_path, most_entries=1)
    cache.put(KEY, b"trace")
    cache.put(OTHER, b"trace")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".git", f"{OTHER}.trace", "thesis.trace"]


HAMMER = """
import sys
from pathlib import Path
from exporters.onnx.trace_cache import TraceCache
cache = TraceCache(Path(sys.argv[1]), most_entries=2)
hits = 0
for i in range(150):
    key = str(i % 4) * 64
    trace = key.encode() * 50
    kept = cache.get(key)
    assert kept in (None, trace), "a torn trace"
    hits += kept is not None
    cache.put(key, trace)
print(hits)
"""


def test_processes_may_share_a_folder(tmp_path: Path) -> None:
    """They read, replace and discard the same entries: each read is whole or nothing, and no write fails."""
    command = [sys.executable, "-c", HAMMER, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(map(int, said)) > 0
    left = {file.suffix for file in tmp_path.iterdir()}
    assert left == {".trace"}


def test_off_unless_asked_for(denoiser: GraphSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    for off in (None, ""):
        monkeypatch.delenv(VARIABLE) if off is None else monkeypatch.setenv(VARIABLE, off)
        assert trace_cache() is None
    monkeypatch.setenv(VARIABLE, "traces")
    assert trace_cache() == TraceCache(Path("traces"))
