"""What the two sizes of SD3.5 take on each tier, computed from their shapes: the table in docs/devices/README.md.

    python -m tests.docs.sizes      # rewrites the table

Nothing is downloaded, traced or measured: a build says these numbers before it traces anything.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from deploy.build.budget import fitting
from deploy.build.plan import plan
from deploy.build.request import BuildRequest
from deploy.errors import TierError
from deploy.tiers.tier import all_tiers
from distillation.random_students import PRESETS
from tests.docs.pages import ROOT
from tests.helpers.sparse_student import make_sparse_student

PAGE = ROOT / "docs" / "devices" / "README.md"
BEGIN, END = "<!-- sizes: made by python -m tests.docs.sizes -->", "<!-- sizes end -->"
MEDIUM = PRESETS["full"]
SHAPES = {
    "SD3.5-Medium": MEDIUM,
    "SD3.5-Large (and Turbo)": replace(MEDIUM, layers=38, heads=38, dual_layers=0, max_positions=192),
}


def table(students: Mapping[str, Path]) -> str:
    """The table as Markdown.

    Args:
        students: folders by the columns' names.
    """
    heads = ["tier", "format", "T5", *students]
    lines = [heads, ["---"] * len(heads), *_rows(students)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(students: Mapping[str, Path]) -> Iterator[list[str]]:
    for name, tier in all_tiers().items():
        for model_format in tier.formats:
            cells = [cell(student, name, model_format) for student in students.values()]
            yield [f"`{name}`", model_format, "kept" if tier.keep_t5 else "dropped", *cells]


def cell(student: Path, tier: str, model_format: str) -> str:
    """What a student takes on a tier: its bundle and a generation's peak of memory, in the profile that a build chooses."""
    output = student.with_name("not made")
    planned = plan(BuildRequest(output=output, student=student, tier=tier, format=model_format))  # type: ignore[arg-type]
    try:
        scheme, _, sizes = fitting(planned)
    except TierError:
        return "does not fit"
    how = f" (`{scheme}` for all)" if scheme else ""
    return f"{sizes.stored_bytes / 1e9:.2f} GB, {sizes.peak_bytes / 1e9:.1f} GB{how}"


def into(page: str, rows: str) -> str:
    """The page with its table replaced."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n\n{rows}\n\n{END}", page, flags=re.DOTALL)


def main() -> None:
    """Rewrite the page's table."""
    with tempfile.TemporaryDirectory() as folder:
        students = {name: make_sparse_student(shape, Path(folder) / str(i)) for i, (name, shape) in enumerate(SHAPES.items())}
        PAGE.write_text(into(PAGE.read_text("utf-8"), table(students)), "utf-8")


if __name__ == "__main__":
    main()
