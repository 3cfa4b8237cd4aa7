"""What the bundle side complains of; the tree is drawn in :mod:`quantization.errors`."""

from __future__ import annotations

from quantization.errors import Complaint, InputError

__all__ = ["BundleError", "CheckFailed", "Complaint", "InputError", "TierError"]


class BundleError(InputError):
    """A bundle is damaged, foreign, or does not fit the request."""


class TierError(InputError):
    """A tier does not exist, or what was asked for does not fit it."""


class CheckFailed(Exception):  # noqa: N818  (a verdict, not an error)
    """The input was good and the result was not: the command line exits with 1."""
