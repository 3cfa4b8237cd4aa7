"""What the export side complains of; the tree is drawn in :mod:`quantization.errors`."""

from __future__ import annotations

from collections.abc import Sequence

from quantization.errors import Complaint, InputError

__all__ = ["Complaint", "ExportError", "InputError", "StudentError"]


class StudentError(InputError):
    """A checkpoint is not a usable student.

    Args:
        headline: what could not be done.
        complaints: each thing that is wrong.
        remedy: what the user can do about it.
        kind: what it is instead, where that is known: ``transformer is quantized with bitsandbytes``.
    """

    def __init__(self, headline: str, complaints: Sequence[Complaint] = (), remedy: str = "", kind: str = "") -> None:
        self.kind = kind
        super().__init__(headline, complaints, remedy)

    @classmethod
    def of(cls, headline: str, errors: Sequence[StudentError]) -> StudentError:
        """Several in one: every complaint, what it is instead in the headline, every remedy in the last line."""
        complaints = [c for error in errors for c in error.complaints or [Complaint("student", error.headline)]]
        kinds = list(dict.fromkeys(error.kind for error in errors if error.kind))
        remedies = dict.fromkeys(error.remedy for error in errors if error.remedy)
        more = f": {'; '.join(kinds[:3])}" if kinds else ""
        more += f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
        return cls(f"{headline}{more}.", complaints, "; ".join(remedies), "; ".join(kinds))


class ExportError(InputError):
    """A graph cannot be exported as asked."""
