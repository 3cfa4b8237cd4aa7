"""The protobuf classes of Core ML's file format, which coremltools ships; nothing else of it is used here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from exporters.errors import Complaint, ExportError

# What coremltools logs on every import where there is no Core ML to load, and of every torch newer than its last release: true
# (https://github.com/apple/coremltools/issues/2465), and of no consequence to who only wants to read files.
_EXPECTED = ("Failed to load _ML", "Torch version ")


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_EXPECTED)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Drop what coremltools is expected to log while it is imported; everything else it says is passed on."""
    logger = logging.getLogger("coremltools")
    logger.addFilter(_is_news)
    try:
        yield
    finally:
        logger.removeFilter(_is_news)


@cache
def model_class() -> Any:
    """The protobuf message of a whole model, ``CoreML.Specification.Model``.

    Raises:
        ExportError: coremltools is not installed.
    """
    try:
        with quiet_import():
            from coremltools.proto import Model_pb2
    except ImportError as error:
        complaint = Complaint("coremltools", "cannot be imported", got=str(error))
        raise ExportError("A Core ML package cannot be read.", [complaint], "pip install 'flash-deploy[coreml]'") from error
    return Model_pb2.Model
