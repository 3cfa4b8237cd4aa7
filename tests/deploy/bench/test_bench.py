from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import deploy.bench.runner
from benchmarks.results.comparison import comparison, differing, within
from benchmarks.results.picture_grid import grid
from benchmarks.results.record import Entry, Measured, Results, load_results
from benchmarks.results.report import html, markdown
from benchmarks.studies.memory_agreement import watched
from deploy.bench.request import BenchRequest
from deploy.bench.run import Benchmark, bench
from deploy.bench.targets import TARGETS, RunnerTarget
from deploy.bundle.folder import Bundle
from deploy.errors import InputError
from deploy.runtime.sessions import Sessions
from exporters.student.student import BUILTIN_STUDENT

GRAPHS = ["text_encoder", "conditioner", "denoiser", "vae_decoder"]


@pytest.fixture(scope="module")
def benchmark(builtin_bundle: Bundle) -> Benchmark:
    """The bundle and its student in bf16, beside the student in fp32."""
    targets = ("onnxruntime-cpu", "torch-bf16")
    folder = builtin_bundle.folder
    return bench(BenchRequest((folder,), targets, runs=2, rounds=2, threads=1, student=BUILTIN_STUDENT, pictures=2, score=3))


@pytest.fixture(scope="module")
def results(benchmark: Benchmark) -> Results:
    return benchmark.results


def test_everything_is_measured(results: Results, builtin_bundle: Bundle, tmp_path: Path) -> None:
    entry, _ = results.entries
    assert entry.measured is not None
    assert list(entry.measured.graphs) == GRAPHS
    for graph in entry.measured.graphs.values():
        assert [len(s.wall_ms) for s in (graph.load, graph.first, graph.warm_ups, graph.warm)] == [2, 2, 2, 4]
        assert all(time > 0 for time in graph.warm.wall_ms)
    assert entry.bytes_on_disk == sum(record.size_bytes for record in builtin_bundle.manifest.files)
    assert entry.measured.metadata["threads"] == "1"
    assert entry.measured.metadata["student"] == builtin_bundle.manifest.student.fingerprint
    assert entry.measured.energy_method
    assert entry.graph_db["denoiser"] >= 100
    assert entry.facts is not None
    assert (entry.facts.schemes, entry.facts.height, entry.facts.steps) == (("fp32",), 64, 4)
    file = tmp_path / "r.json"
    file.write_bytes(results.to_json())
    assert load_results(file) == results


def test_pictures_are_judged_on_every_target(results: Results) -> None:
    """The fp32 bundle draws the student's pictures (graphs at over 100 dB, four steps); bf16 has 8 bits of mantissa."""
    ours, peer = (entry.quality for entry in results.entries)
    assert ours is not None
    assert peer is not None
    assert ours.latent_db is not None
    assert peer.latent_db is not None
    assert ours.psnr_db > 100
    assert ours.latent_db > 100
    assert ours.ssim > 1 - 1e-6
    assert 20 < peer.latent_db < 60
    assert len(ours.pictures) == 5
    assert ours.score is not None
    assert (ours.score.count, ours.score.lost, ours.score.won) == (3, 0, 0)  # the same pictures, the same verdicts


def test_a_peer_is_measured_by_component(results: Results) -> None:
    _, peer = results.entries
    assert peer.measured is not None
    assert list(peer.measured.graphs) == ["text_encoder", "text_encoder_2", "transformer", "vae_decoder"]
    assert len(peer.measured.graphs["transformer"].warm.wall_ms) == 2 * 2 * 4  # rounds, pictures, steps
    assert len(peer.measured.picture.warm.wall_ms) == 4
    assert peer.bytes_on_disk > 4_000_000
    assert "torch 2." in peer.measured.metadata["runtime"]


def test_reports_say_it_all(benchmark: Benchmark) -> None:
    text, page = markdown(benchmark.results), html(benchmark.results, pictures=grid(benchmark.pictures, benchmark.results))
    for words in ("denoiser", "onnxruntime-cpu", "torch-bf16", "ms", "MB", "threads 1", "Energy", "RssAnon", "SSIM"):
        assert words in text
        assert words in page
    assert page.count("<svg") == 4  # latency, memory, quality, graphs
    assert "<script" not in page
    linked = re.findall(r"""(?:src|href)=["'](\w+:[^"']*)""", page)  # nothing is fetched from anywhere
    assert [link for link in linked if not link.startswith("data:")] == []


def test_pictures_are_shown_the_worst_first(benchmark: Benchmark) -> None:
    rows = grid(benchmark.pictures, benchmark.results)
    assert len(rows) == 2  # the prompts; what was only scored is not shown
    assert [row.cells[0].psnr_db for row in rows] == sorted(row.cells[0].psnr_db for row in rows)
    for row in rows:
        assert [cell.label for cell in row.cells] == ["builtin_student, torch-bf16", "builtin, onnxruntime-cpu"]
        assert row.cells[0].difference != row.cells[1].difference
    page = html(benchmark.results, pictures=rows)
    assert page.count("data:image/png;base64,") == 2 * (1 + 2 * 2)  # the student's, and of two entries picture and difference


class Clock:
    """Stands for the module ``time``: no time passes but where a test says so, and all of it on the CPU."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    process_time = perf_counter


def test_a_slower_bundle_is_called_slower(builtin_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph takes 20 ms longer; the others are as they were. In this process, which is what a round is made of."""
    load, clock = Sessions.load, Clock()
    monkeypatch.setattr("benchmarks.measure.process.time", clock)

    def rounds(longer_ms: float) -> Results:
        def loaded(sessions: Sessions, graph: str) -> Any:
            run = load(sessions, graph)
            clock.seconds += 0.005

            def timed(inputs: Any) -> Any:
                clock.seconds += 0.001 + (longer_ms / 1000 if graph == "conditioner" else 0.0)
                return run(inputs)

            return timed

        monkeypatch.setattr(Sessions, "load", loaded)
        subject = deploy.bench.runner.Subject(builtin_bundle.folder, "onnxruntime", "cpu", 1)
        measured = [deploy.bench.runner.measure(subject, 2, 1)[0] for _ in range(5)]
        parts = [msgspec.convert(part, Measured) for part in measured]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return together(Entry(**BARE, measured=total))

    before, after = rounds(0), rounds(20)
    measured = after.entries[0].measured
    assert measured is not None
    assert {name: graph.warm.wall_ms for name, graph in measured.graphs.items()} == {
        name: pytest.approx([21.0 if name == "conditioner" else 1.0] * 10) for name in GRAPHS
    }
    assert all(graph.load.wall_ms == pytest.approx([5.0] * 5) for graph in measured.graphs.values())
    # A picture loads four graphs and runs each, the denoiser in four steps.
    assert measured.picture.warm.wall_ms == pytest.approx([4 * 5.0 + 7.0 + 20.0] * 10)
    rows = {row[2]: (row[3], row[-1]) for row in comparison(before, after, np.random.default_rng(0))}
    same = ("1.00", "no significant difference")
    assert {name: rows[name] for name in GRAPHS} == {**dict.fromkeys(GRAPHS, same), "conditioner": ("21.00", "slower")}


BARE: dict[str, Any] = {"bundle": "b", "fingerprint": "", "target": "onnxruntime-cpu", "bytes_on_disk": 1, "graph_bytes": {}}


def together(*entries: Entry, rounds: int = 5) -> Results:
    return Results(format="flash-deploy benchmark", version=2, measured_at="", commit="", rounds=rounds, entries=entries)


def test_bundles_of_one_file_are_compared(results: Results) -> None:
    """Against the first on the same target: the same samples, three times as long ones, noise over twice the CPU time."""
    measured = results.entries[0].measured
    assert measured is not None
    wall = tuple(100 + i / 10 for i in range(10))
    warm = msgspec.structs.replace(measured.picture.warm, wall_ms=wall, cpu_ms=wall)
    slow = msgspec.structs.replace(warm, wall_ms=tuple(3 * ms for ms in wall))
    noisy = tuple(100.0 + 50 * (-1) ** i for i in range(10))
    busy = msgspec.structs.replace(warm, wall_ms=noisy, cpu_ms=tuple(2 * ms for ms in wall))
    first, same, slower, hidden = (
        Entry(**{**BARE, "bundle": name}, measured=msgspec.structs.replace(measured, graphs={}, picture=picture))
        for name, picture in (
            ("a", msgspec.structs.replace(measured.picture, warm=warm)),
            ("b", msgspec.structs.replace(measured.picture, warm=warm)),
            ("c", msgspec.structs.replace(measured.picture, warm=slow)),
            ("d", msgspec.structs.replace(measured.picture, warm=busy)),
        )
    )
    rows = within(together(first, same, slower, hidden), np.random.default_rng(0))
    assert [(row[0], row[3], row[-1]) for row in rows] == [
        ("b over a", "1.00", "no significant difference"),
        ("c over a", "3.00", "slower"),
        ("d over a", rows[2][3], "slower in CPU time; wall time is too noisy to say"),
    ]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_agrees_with_what_is_seen_from_outside(builtin_bundle: Bundle) -> None:
    """Of each part that is long enough to be sampled from outside: what the runner says against smaps_rollup."""
    command = [sys.executable, "-m", "deploy.bench.runner", str(builtin_bundle.folder), "--runtime", "onnxruntime", "--runs", "5"]
    measured, parts, samples = watched(command)
    compared = 0
    for name, (began, ended) in parts.items():
        inside = [sample for sample in samples if began <= sample[0] <= ended]
        if len(inside) >= 10:
            ours = measured["picture"] if name == "picture" else measured["graphs"][name]
            assert ours["peak_memory_bytes"] == pytest.approx(max(sample[1] for sample in inside), rel=0.05)
            assert ours["peak_resident_bytes"] == pytest.approx(max(sample[2] for sample in inside), rel=0.05)
            compared += 1
    assert compared >= 2


def test_a_remote_device_runs_the_same(builtin_bundle: Bundle) -> None:
    """Any command that runs another; here a shell, which stands for ssh."""
    python = shlex.quote(sys.executable)
    remote = f"sh -c 'shift; exec {python} \"$@\"' remote {{command}}"
    request = BenchRequest((builtin_bundle.folder,), ("onnxruntime-cpu",), runs=1, rounds=1, remote=remote)
    (entry,) = bench(request).results.entries
    assert entry.target == "onnxruntime-cpu, remote"
    assert entry.measured is not None


def test_runs_that_differ_do_not_merge(results: Results) -> None:
    measured = results.entries[0].measured
    assert measured is not None
    other = msgspec.structs.replace(measured, metadata={**measured.metadata, "threads": "2"})
    with pytest.raises(InputError, match=r"threads: differs \(expected 1, got 2\)"):
        measured + other
    changed = together(msgspec.structs.replace(results.entries[0], measured=other))
    assert differing(results, changed) == [("threads", "1", "2")]
    assert differing(results, results) == []


BAD = {
    "unknown target": ({"targets": ("tpu",)}, "no such target.*onnxruntime-cpu"),
    "target of another format": ({"targets": ("coreml",)}, "No target runs this bundle"),
    "absent target": ({"targets": ("onnxruntime-cuda",)}, "no CUDAExecutionProvider"),
    "no runs": ({"runs": 0}, "--runs"),
    "remote without its command": ({"remote": "ssh phone"}, "{command}"),
    "remote that is not there": ({"remote": "no-such-program {command}"}, "no-such-program"),
    "remote that fails": ({"remote": "false {command}"}, "exit code 1"),
    "remote that says something else": ({"remote": "echo {command}"}, "gave no result"),
    "peer without its student": ({"targets": ("torch",)}, "--student names"),
    "browser without its page": ({"targets": ("browser-wasm",)}, "has no page"),
    "score without a student": ({"score": 5}, "--student too"),
    "another student": ({"student": "tiny"}, "was made of another student"),
    "no pictures": ({"pictures": 0}, "--pictures"),
    "more pictures than prompts": ({"student": BUILTIN_STUDENT, "pictures": 10**6}, "more than there are prompts"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_measured(changes: dict[str, Any], message: str, builtin_bundle: Bundle, students: Any) -> None:
    cuda = TARGETS["onnxruntime-cuda"]
    assert isinstance(cuda, RunnerTarget)
    if cuda.absent() == "" and "cuda" in str(changes):
        pytest.skip("this machine has a GPU")
    if changes.get("student") == "tiny":
        changes = {"student": students["tiny"].path}
    with pytest.raises(InputError, match=message):
        bench(BenchRequest(**{"bundles": (builtin_bundle.folder,), "targets": ("onnxruntime-cpu",), "rounds": 1, **changes}))


def test_files_that_are_no_benchmark(tmp_path: Path) -> None:
    for text in ('{"format": "flash-deploy benchmark", "version": 3}', '{"version": 1, "entries": [3]}', "[]", '{"version": 1}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match="is no benchmark"):
            load_results(tmp_path / "x.json")


def test_files_of_version_1_are_read(results: Results, tmp_path: Path) -> None:
    """Without what they say of prompts and energy, which version 2 says otherwise."""
    import json

    raw = json.loads(results.to_json())
    old = [{key: value for key, value in entry.items() if key not in {"facts", "quality"}} for entry in raw["entries"]]
    entries = [{**entry, "picture_db": {"a": 40.0}, "energy": "not available"} for entry in old]
    (tmp_path / "x.json").write_text(json.dumps({**raw, "version": 1, "entries": entries}))
    loaded = load_results(tmp_path / "x.json")
    assert [entry.measured for entry in loaded.entries] == [entry.measured for entry in results.entries]
