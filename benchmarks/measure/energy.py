"""Joules that the processor has used, where the system counts them: Linux's RAPL. Needs nothing beside Python."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path("/sys/class/powercap")
NONE_LINUX = "not available: no RAPL counter that can be read"
NONE_ELSEWHERE = "not available: needs powermetrics, as root"


class EnergyMeter:
    """All processor packages of this machine (Linux, Documentation/power/powercap/powercap.rst).

    Everything that the machine does counts, not this process alone.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._counters = [folder for folder in sorted(root.glob("intel-rapl:[0-9]*")) if ":" not in folder.name[11:]]
        self._before = self._read()
        named = f"RAPL, {len(self._counters)} packages, of the whole machine"
        self.method = named if self._before else NONE_LINUX if sys.platform == "linux" else NONE_ELSEWHERE

    def start(self) -> None:
        """Count from here on."""
        self._before = self._read()

    def joules(self) -> float | None:
        """Since :meth:`start`; none where the system does not say. Counters that began anew once meanwhile are put right."""
        after = self._read()
        if not after or not self._before:
            return None
        used = 0
        for (before, span), (now, _) in zip(self._before, after, strict=True):
            used += now - before if now >= before else now - before + span
        return used / 1e6

    def _read(self) -> list[tuple[int, int]]:
        """Microjoules of each counter, and where it begins anew; empty if any cannot be read."""
        try:
            return [
                (int((f / "energy_uj").read_text("ascii")), int((f / "max_energy_range_uj").read_text("ascii")))
                for f in self._counters
            ]
        except (OSError, ValueError):
            return []
