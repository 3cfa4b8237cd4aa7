"""The drawing of the imports: `python -m tests.imports` prints what is wrong with it, and exits with 1 where anything is.

A *room* is a folder of a package (`exporters/onnx` with all below it) or a file that lies flat in one (`exporters/errors.py`).
Imports inside functions count as all others do: they decide when a module is loaded, not who needs whom.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Each package imports those after it, never one before it.
ORDER = ("flash_deploy", "deploy", "benchmarks", "distillation", "exporters", "quantization")
#: More than that in one folder, and the listing no longer tells what is in it.
FLAT_FILES = 14
#: The one file that starts a package above its own, as a user would: by the command.
STARTS_COMMANDS = "benchmarks.studies.command"

Arrows = dict[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the packages, by its dotted name."""
    files = {}
    for package in ORDER:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def imported(source: str, candidates: Iterable[str]) -> set[str]:
    """Those of the candidates that a module imports, a package's face where only that is named."""
    candidates = set(candidates)
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= within & candidates
            if within - candidates:
                names.add(node.module)
    return names & candidates


def arrows(files: Mapping[str, Path]) -> Arrows:
    """Who imports whom, a file at a time."""
    return {name: imported(file.read_text(encoding="utf-8"), files) - {name} for name, file in files.items()}


def room(module: str) -> str:
    """The first two parts of a name: the folder or the flat file of a package."""
    return ".".join(module.split(".")[:2])


def between_rooms(files: Arrows) -> Arrows:
    """The same arrows, seen from the corridor."""
    rooms: Arrows = {room(name): set() for name in files}
    for name, targets in files.items():
        rooms[room(name)] |= {room(target) for target in targets} - {room(name)}
    return rooms


def circles(graph: Arrows) -> list[list[str]]:
    """Groups of two or more that reach one another (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return groups


def upward(files: Arrows) -> list[tuple[str, str]]:
    """Imports of a package by one that comes after it in the order."""
    rank = {package: at for at, package in enumerate(ORDER)}
    return [
        (name, target)
        for name, targets in sorted(files.items())
        for target in sorted(targets)
        if rank[target.split(".")[0]] < rank[name.split(".")[0]]
    ]


def started(files: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Packages above its own that a module names in a list of strings, as a command line is: a hidden arrow."""
    rank = {package: at for at, package in enumerate(ORDER)}
    hidden = []
    for name, file in files.items():
        above = [package for package in ORDER if rank[package] < rank[name.split(".")[0]]]
        lists = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.List | ast.Tuple)]
        words = {
            part.value for node in lists for part in node.elts if isinstance(part, ast.Constant) and isinstance(part.value, str)
        }
        hidden += [(name, package) for package in above if any(word.split(".")[0] == package for word in words)]
        hidden += [(name, "deploy") for _ in words & {"flash-deploy"} if "deploy" in above]
    return sorted(set(hidden))


def flat_files(files: Mapping[str, Path]) -> dict[str, int]:
    """How many modules lie directly in each folder."""
    counts: dict[str, int] = {}
    for file in files.values():
        if file.name != "__init__.py":
            folder = str(file.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    return counts


def complaints() -> list[str]:
    """One line for each thing that is wrong with the drawing."""
    files = modules()
    drawn = arrows(files)
    lines = [f"circle of files: {', '.join(group)}" for group in circles(drawn)]
    lines += [f"circle of rooms: {', '.join(group)}" for group in circles(between_rooms(drawn))]
    lines += [f"upward: {name} imports {target}" for name, target in upward(drawn)]
    lines += [f"upward: {name} starts {package}" for name, package in started(files) if name != STARTS_COMMANDS]
    lines += [f"flat: {folder} has {count} files" for folder, count in flat_files(files).items() if count > FLAT_FILES]
    return lines


def main() -> int:
    """Print the complaints, or how much was drawn."""
    lines = complaints()
    drawn = arrows(modules())
    print("\n".join(lines) or f"{len(drawn)} files, {sum(map(len, drawn.values()))} arrows: no circle, none upward")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
