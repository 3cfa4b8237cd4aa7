"""The documentation as data: pages, code blocks with their marks, inline code, links and headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("deploy", "benchmarks", "distillation", "exporters", "quantization", "flash_deploy", "tests")
MARKS = ("a download", "a Mac", "a phone", "a GPU", "a browser", "another machine", "an hour")
"""What a block needs that a bare machine with the environment has not; such blocks are not run by ``tests.docs_commands``."""

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
_NEEDS = re.compile(r"<!-- needs: (.*) -->")
_FILE_NAME = re.compile(r"(?:#|//) ([\w-]+\.(?:py|mjs|swift|kt))")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its file.
        line: of its fence, counted from 1.
        language: what follows the fence.
        text: what is in it, each line with its end.
        needs: what its mark says that it needs; empty where there is no mark.
    """

    page: Path
    line: int
    language: str
    text: str
    needs: str

    @property
    def file_name(self) -> str:
        """The name of the file that it shows, by its first line; empty where it shows none."""
        match = _FILE_NAME.fullmatch(self.text.split("\n", 1)[0])
        return match[1] if match else ""

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Span:
    """Inline code, or a link's target, and the line that it is in."""

    text: str
    line: int


@dataclass(frozen=True)
class Page:
    """A Markdown file."""

    path: Path
    blocks: tuple[Block, ...]
    prose: tuple[tuple[int, str], ...]
    """Lines outside of blocks, with their numbers."""

    @property
    def code(self) -> list[Span]:
        """Inline code; it may go on in the next line of its paragraph."""
        return self._spans(r"(?<!`)`([^`]+)`(?!`)")

    @property
    def links(self) -> list[Span]:
        """Targets of links and pictures."""
        return self._spans(r"\]\(([^)\s]+)\)") + self._spans(r'<img [^>]*src="([^"]+)"')

    @property
    def anchors(self) -> set[str]:
        """What the page's headings can be linked to as."""
        return {anchor(line.lstrip("#")) for _, line in self.prose if re.match(r"#{1,6} ", line)}

    def _spans(self, pattern: str) -> list[Span]:
        lines = [(number, line + "\n") for number, line in self.prose]
        text = "".join(line for _, line in lines)
        starts, at = [], 0
        for number, line in lines:
            starts.append((at, number))
            at += len(line)
        spans = []
        for match in re.finditer(pattern, text):
            number = max(number for start, number in starts if start <= match.start())
            spans.append(Span(" ".join(match[1].split()), number))
        return spans


def anchor(heading: str) -> str:
    """A heading as the target of a link, as GitHub makes it.

    >>> anchor(" Memory, as `bench` reports it")
    'memory-as-bench-reports-it'
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def parse(path: Path, text: str) -> Page:
    """A page's blocks and lines.

    Args:
        path: what the page is called; not read.
        text: its content.
    """
    blocks: list[Block] = []
    prose: list[tuple[int, str]] = []
    inside: list[str] | None = None
    fence = language = needs = ""
    opened = indent = 0
    for number, line in enumerate(text.splitlines(), 1):
        match = _FENCE.match(line)
        if inside is not None:
            if match and match[2].startswith(fence) and not match[3].strip():
                blocks.append(Block(path, opened, language, "".join(inside), needs))
                inside = None
            else:
                inside.append(f"{line[indent:]}\n")
        elif match:
            inside, opened, indent = [], number, len(match[1])
            fence, language = match[2], match[3].strip()
            before = prose[-1][1] if prose and prose[-1][0] == number - 1 else ""
            needs = needed[1] if (needed := _NEEDS.search(before)) else ""
        else:
            prose.append((number, line))
    return Page(path, tuple(blocks), tuple(prose))


@lru_cache(maxsize=1)
def pages() -> tuple[Page, ...]:
    """README and everything in docs/."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return tuple(parse(file, file.read_text("utf-8")) for file in files)


def block_of(page: str, file_name: str) -> Block:
    """The block of a page that shows a file.

    Args:
        page: its path from the root.
        file_name: the file's.
    """
    [block] = [b for p in pages() if p.path == ROOT / page for b in p.blocks if b.file_name == file_name]
    return block
