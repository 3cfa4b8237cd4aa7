"""What the export side complains of; the tree is drawn in :mod:`quantization.errors`."""

from __future__ import annotations

from quantization.errors import Complaint, InputError

__all__ = ["Complaint", "ExportError", "InputError", "StudentError"]


class StudentError(InputError):
    """A checkpoint is not a usable student."""


class ExportError(InputError):
    """A graph cannot be exported as asked."""
