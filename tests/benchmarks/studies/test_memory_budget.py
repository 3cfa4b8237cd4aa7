"""A bundle's measured peak memory is held against its tier's budget."""

from __future__ import annotations

import sys

import pytest

import benchmarks.studies.memory_budget
from benchmarks.studies.command import inspect
from deploy.bundle.folder import Bundle


def test_measured_peak_fits_the_tier(
    builtin_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memory", str(builtin_bundle.folder)])
    with pytest.raises(SystemExit) as ended:
        benchmarks.studies.memory_budget.main()
    assert ended.value.code == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    measured, allowed = (float(row[i].split()[0]) for i in (2, 6))
    assert 20 < measured < allowed  # an interpreter with onnxruntime takes some 40 MB


def test_a_peak_over_the_budget_fails(builtin_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    about = inspect(builtin_bundle.folder) | {"tier_memory_bytes": 20_000_000}
    monkeypatch.setattr(benchmarks.studies.memory_budget, "inspect", lambda folder: about)
    monkeypatch.setattr(sys, "argv", ["memory", str(builtin_bundle.folder)])
    with pytest.raises(SystemExit) as ended:
        benchmarks.studies.memory_budget.main()
    assert ended.value.code == 1
