from __future__ import annotations

from pathlib import Path

from benchmarks.measure.energy import EnergyMeter


def counter(root: Path, name: str, used: int, span: int = 1000) -> None:
    (root / name).mkdir(exist_ok=True)
    (root / name / "energy_uj").write_text(f"{used}\n")
    (root / name / "max_energy_range_uj").write_text(f"{span}\n")


def test_packages_are_added_and_counters_may_begin_anew(tmp_path: Path) -> None:
    """Cores (intel-rapl:0:0) are part of their package. 100 more of the first, 900 to 50 of 1000 of the second."""
    counter(tmp_path, "intel-rapl:0", 100)
    counter(tmp_path, "intel-rapl:0:0", 50)
    counter(tmp_path, "intel-rapl:1", 900)
    meter = EnergyMeter(tmp_path)
    assert meter.method == "RAPL, 2 packages, of the whole machine"
    meter.start()
    counter(tmp_path, "intel-rapl:0", 200)
    counter(tmp_path, "intel-rapl:0:0", 999)
    counter(tmp_path, "intel-rapl:1", 50)
    assert meter.joules() == (100 + 150) / 1e6


def test_where_there_is_no_counter(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    assert meter.joules() is None
    assert meter.method.startswith("not available")
    counter(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text("?")
    assert EnergyMeter(tmp_path).joules() is None
