from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import deploy.runner
from benchmarks.report import comparison, differing, html, markdown
from benchmarks.results import Measured, Results, load_results
from benchmarks.targets import TARGETS
from deploy.bench import BenchRequest, bench, drawn_prompts
from deploy.bundle import Bundle
from deploy.errors import InputError
from deploy.sessions import Sessions

GRAPHS = ["text_encoder", "conditioner", "denoiser", "vae_decoder"]


@pytest.fixture(scope="module")
def results(builtin_bundle: Bundle) -> Results:
    return bench(BenchRequest((builtin_bundle.folder,), ("onnxruntime-cpu",), runs=2, rounds=2, threads=1))


def test_everything_is_measured(results: Results, builtin_bundle: Bundle, tmp_path: Path) -> None:
    (entry,) = results.entries
    assert entry.measured is not None
    assert list(entry.measured.graphs) == GRAPHS
    for graph in entry.measured.graphs.values():
        assert [len(s.wall_ms) for s in (graph.load, graph.first, graph.warm_ups, graph.warm)] == [2, 2, 2, 4]
        assert all(time > 0 for time in graph.warm.wall_ms)
    assert entry.bytes_on_disk == sum(record.size_bytes for record in builtin_bundle.manifest.files)
    assert entry.measured.metadata["threads"] == "1"
    assert entry.measured.metadata["student"] == builtin_bundle.manifest.student.fingerprint
    assert entry.energy
    assert entry.graph_db["denoiser"] >= 100
    file = tmp_path / "r.json"
    file.write_bytes(results.to_json())
    assert load_results(file) == results


def test_reports_say_it_all(results: Results) -> None:
    text, page = markdown(results), html(results)
    for words in ("denoiser", "onnxruntime-cpu", "ms", "MB", "threads 1", "energy"):
        assert words in text
        assert words in page
    assert page.count("<svg") == 3
    assert "<script" not in page
    linked = re.findall(r"""(?:src|href)=["'](\w+:[^"']*)""", page)  # nothing is fetched from anywhere
    assert [link for link in linked if not link.startswith("data:")] == []


def test_pictures_are_shown_the_worst_first(results: Results, builtin_bundle: Bundle) -> None:
    figures = {"two green triangles on a black background": 50.0, "a red circle on a white background": 40.0}
    (entry,) = results.entries
    compared = msgspec.structs.replace(results, entries=(msgspec.structs.replace(entry, picture_db=figures),))
    grid = drawn_prompts(compared, [builtin_bundle.folder])
    assert [prompt for prompt, _ in grid] == sorted(figures, key=figures.__getitem__)
    page = html(compared, grid)
    assert page.count("data:image/png;base64,") == 2
    assert page.index("40.0 dB PSNR") < page.index("50.0 dB PSNR")


def test_a_slower_bundle_is_called_slower(builtin_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleep inside one graph; the others are as they were. In this process, which is what a round is made of."""
    load = Sessions.load

    def slowed(sessions: Sessions, graph: str) -> Any:
        import time

        run = load(sessions, graph)
        return (lambda inputs: (time.sleep(0.02), run(inputs))[1]) if graph == "conditioner" else run

    def rounds(slow: bool) -> Results:
        monkeypatch.setattr(Sessions, "load", slowed if slow else load)
        found = [deploy.runner.measure(builtin_bundle.folder, "onnxruntime", "cpu", 1, 2, 1) for _ in range(5)]
        parts = [msgspec.convert(part, Measured) for part in found]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        entry = bench_entry(builtin_bundle, total)
        return Results(format="flash-deploy benchmark", version=1, measured_at="", commit="", rounds=5, entries=(entry,))

    rows = {row[2]: row for row in comparison(rounds(False), rounds(True), np.random.default_rng(0))}
    assert rows["conditioner"][-1] == "slower"
    assert float(rows["conditioner"][3]) > 2


def bench_entry(bundle: Bundle, measured: Measured) -> Any:
    from benchmarks.results import Entry

    return Entry(bundle="b", fingerprint="", target="onnxruntime-cpu", bytes_on_disk=1, graph_bytes={}, measured=measured)


def test_memory_agrees_with_the_kernels_own_figure(builtin_bundle: Bundle) -> None:
    """What the process says of itself against what is seen from outside: resident pages that are no file's."""
    import psutil

    command = [sys.executable, "-m", "deploy.runner", str(builtin_bundle.folder), "--runtime", "onnxruntime", "--runs", "2"]
    highest = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                info = watched.memory_info()
                highest = max(highest, info.rss - info.shared)
            except psutil.NoSuchProcess:
                break
        assert process.stdout is not None
        found = msgspec.json.decode(process.stdout.read(), type=Measured)
    peak = max(found.picture.peak_memory_bytes, *(graph.peak_memory_bytes for graph in found.graphs.values()))
    assert peak == pytest.approx(highest, rel=0.05)


def test_a_remote_device_runs_the_same(builtin_bundle: Bundle) -> None:
    """Any command that runs another; here a shell, which stands for ssh."""
    python = shlex.quote(sys.executable)
    remote = f"sh -c 'shift; exec {python} \"$@\"' remote {{command}}"
    request = BenchRequest((builtin_bundle.folder,), ("onnxruntime-cpu",), runs=1, rounds=1, remote=remote)
    (entry,) = bench(request).entries
    assert entry.target == "onnxruntime-cpu, remote"
    assert entry.measured is not None


def test_runs_that_differ_do_not_merge(results: Results) -> None:
    measured = results.entries[0].measured
    assert measured is not None
    other = msgspec.structs.replace(measured, metadata={**measured.metadata, "threads": "2"})
    with pytest.raises(InputError, match=r"threads: differs \(expected 1, got 2\)"):
        measured + other
    changed = msgspec.structs.replace(results, entries=(msgspec.structs.replace(results.entries[0], measured=other),))
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
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_measured(changes: dict[str, Any], message: str, builtin_bundle: Bundle) -> None:
    if TARGETS["onnxruntime-cuda"].absent() == "" and "cuda" in str(changes):
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=message):
        bench(BenchRequest(**{"bundles": (builtin_bundle.folder,), "targets": ("onnxruntime-cpu",), "rounds": 1, **changes}))


def test_files_that_are_no_benchmark(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"format": "flash-deploy benchmark", "version": 2}')
    with pytest.raises(InputError, match=r"version|missing"):
        load_results(tmp_path / "x.json")
