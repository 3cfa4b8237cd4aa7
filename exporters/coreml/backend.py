"""coremltools, imported in one place: quietly, and with the few private names that streaming weights needs.

Pinned to 9.0. ``MILProtoExporter`` is subclassed so that a constant's value is read when it is written
(:mod:`exporters.coreml.package`); ``write_blob`` puts one array into Apple's weight file and returns where.
"""

from __future__ import annotations

import logging

# On Linux coremltools warns that Core ML itself is absent and that it was not tested with this torch: neither is used here.
_logger = logging.getLogger("coremltools")
_level = _logger.level
_logger.setLevel(logging.ERROR)

import coremltools as ct  # noqa: E402
from coremltools import proto  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.backend.mil.helper import _get_offset_by_writing_data as write_blob  # noqa: E402
from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter, MILProtoExporter  # noqa: E402
from coremltools.converters.mil.mil import Function, Program, Var, types  # noqa: E402

_logger.setLevel(_level)

__all__ = ["CoreMLProtoExporter", "Function", "MILProtoExporter", "Program", "Var", "ct", "mb", "proto", "types", "write_blob"]
