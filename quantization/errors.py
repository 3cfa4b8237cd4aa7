"""Complaints that a user can act on.

They live in the room that nothing points out of, so that all four packages can raise them::

    InputError
    ├── SchemeError            quantization: a tensor cannot be stored as asked
    ├── exporters.errors.StudentError   a checkpoint is not a usable student
    ├── exporters.errors.ExportError    a graph cannot be exported as asked
    ├── deploy.errors.BundleError       a bundle is damaged, foreign or does not fit the request
    └── deploy.errors.TierError         a tier does not exist or its budget is exceeded

The command line prints an ``InputError`` without a traceback and exits with 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def printable(text: str) -> str:
    r"""Text without control characters: what a foreign file says must not drive a terminal.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


@dataclass(frozen=True)
class Complaint:
    """One thing that is wrong: where, what, and (when there are such) expected and got.

    >>> print(Complaint("transformer: proj_out.weight", "wrong shape", expected="[64, 128]", got="[64, 64]"))
    transformer: proj_out.weight: wrong shape (expected [64, 128], got [64, 64])
    """

    where: str
    what: str
    expected: str | None = None
    got: str | None = None

    def __str__(self) -> str:
        facts = [f"{label} {fact}" for label, fact in (("expected", self.expected), ("got", self.got)) if fact]
        return printable(f"{self.where}: {self.what}" + (f" ({', '.join(facts)})" if facts else ""))


class InputError(Exception):
    """Bad input: every complaint at once, and what to do.

    Args:
        headline: what could not be done.
        complaints: each thing that is wrong.
        remedy: what the user can do about it.
    """

    def __init__(self, headline: str, complaints: Sequence[Complaint] = (), remedy: str = "") -> None:
        self.headline = headline
        self.complaints = tuple(complaints)
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.headline, *(f"  - {complaint}" for complaint in self.complaints)]
        if self.remedy:
            lines.append(f"What to do: {self.remedy}")
        return printable("\n".join(lines))


class SchemeError(InputError):
    """A tensor cannot be stored in the scheme that was asked for."""
