from __future__ import annotations

from pathlib import Path

from benchmarks.peers.table import BEGIN, END, into, table
from benchmarks.results.record import load_results

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_peers_is_that_of_its_samples() -> None:
    """No figure is typed: `python -m benchmarks.peers.table docs/peers.json --into docs/benchmarks.md` changes nothing."""
    page = (DOCS / "benchmarks.md").read_text("utf-8")
    assert BEGIN in page
    assert END in page
    assert into(page, table(load_results(DOCS / "peers.json"))) == page
