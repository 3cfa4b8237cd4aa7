"""Complaints that a user can act on.

They live in the room that nothing points out of, so that all four packages can raise them::

    InputError
    ├── SchemeError            quantization: a tensor cannot be stored as asked
    ├── quantization.files.WritingError   a file or folder cannot be written
    ├── exporters.errors.StudentError   a checkpoint is not a usable student
    ├── exporters.errors.ExportError    a graph cannot be exported as asked
    ├── deploy.errors.BundleError       a bundle is damaged, foreign or does not fit the request
    └── deploy.errors.TierError         a tier does not exist or its budget is exceeded

The command line prints an ``InputError`` without a traceback and exits with 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_COMPLAINTS = 20  # told at once: what is wrong with hundreds of tensors is wrong with all of them in one way
LONGEST_FACT = 300
LONGEST_HEADLINE = 1000


def printable(text: str) -> str:
    r"""Text without control characters: what a foreign file says must not drive a terminal.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shortened(text: str, longest: int = LONGEST_FACT) -> str:
    """Printable text of at most ``longest`` characters, cut in its middle: the end of a path says as much as its start.

    >>> shortened("a" * 50 + "b" * 50, 11)
    'aaaaaa...bb'
    """
    if len(text) > 2 * longest:  # first roughly: a value of megabytes would take long to make printable
        text = f"{text[:longest]}...{text[-longest:]}"
    text = printable(text)
    if len(text) <= longest:
        return text
    end = (longest - 3) * 2 // 6
    return f"{text[: longest - 3 - end]}...{text[-end:]}"


def listed(complaints: Sequence[Complaint]) -> list[str]:
    """A line for each complaint, but for many the first of them and how many more there are.

    >>> listed([Complaint("a", "wrong")] * 22)[-2:]
    ['  - a: wrong', '  ... and 2 more']
    """
    lines = [f"  - {complaint}" for complaint in complaints[:MOST_COMPLAINTS]]
    more = len(complaints) - MOST_COMPLAINTS
    return lines if more <= 0 else [*lines, f"  ... and {more} more"]


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
        said = (("expected", self.expected), ("got", self.got))
        facts = [f"{label} {shortened(fact)}" for label, fact in said if fact]
        return f"{shortened(self.where)}: {shortened(self.what)}" + (f" ({', '.join(facts)})" if facts else "")


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
        lines = [shortened(self.headline, LONGEST_HEADLINE), *listed(self.complaints)]
        if self.remedy:
            lines.append(f"What to do: {shortened(self.remedy, LONGEST_HEADLINE)}")
        return "\n".join(lines)


class SchemeError(InputError):
    """A tensor cannot be stored in the scheme that was asked for."""
