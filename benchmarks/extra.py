"""The packages of the extra ``bench``, which only drawing does without, and what is said where one is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from quantization.errors import InputError

REMEDY = "pip install 'flash-deploy[bench]'"


def missing(*packages: str) -> list[str]:
    """Those of the packages that are not installed; none is imported for that."""
    return [package for package in packages if find_spec(package) is None]


def need(*packages: str) -> None:
    """A plain word instead of an import error.

    Raises:
        InputError: some of the packages are not installed.
    """
    if absent := missing(*packages):
        raise InputError(f"Measuring needs packages that are not installed: {', '.join(absent)}.", remedy=REMEDY)
