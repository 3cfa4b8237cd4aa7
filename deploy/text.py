"""Numbers and rows as people read them."""

from __future__ import annotations


def megabytes(size: int) -> str:
    """Bytes in MB (10^6), as people read them.

    >>> megabytes(2703360)
    '2.70 MB'
    """
    return f"{size / 1e6:.2f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines, columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
