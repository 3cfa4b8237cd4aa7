"""Traces that are kept on the disk, so that a graph is traced once and not by every process that exports it.

Off unless ``FLASH_DEPLOY_TRACES`` names a folder, as the test suite does, which exports the same few graphs hundreds of times. An
entry is a serialised ONNX model without weights under the hash of all that it depends on (:mod:`exporters.onnx.trace_key`), after
the hash of both: what is damaged, or under another's name, counts as absent. Entries appear whole, so that processes may share a
folder. A folder that cannot be written to is one that nothing is kept in: a cache never fails an export.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from quantization.files import WritingError, write_bytes

VARIABLE = "FLASH_DEPLOY_TRACES"
MOST_BYTES = 256 << 20
MOST_ENTRIES = 2048
_DIGEST_BYTES = hashlib.sha256().digest_size
_OWN = re.compile(r"[0-9a-f]{64}\.trace|\.[0-9a-f]{40}\.[0-9a-f]{16}\.partial")  # entries, and drafts of what was killed


@dataclass(frozen=True)
class TraceCache:
    """A folder of traces; those that were not used for longest go first.

    Attributes:
        folder: made when the first trace is kept; other files in it are left alone.
        most_bytes: of all entries together.
        most_entries: how many.
    """

    folder: Path
    most_bytes: int = MOST_BYTES
    most_entries: int = MOST_ENTRIES

    def get(self, key: str) -> bytes | None:
        """The trace of that key, if it is there and whole."""
        file = self._file(key)
        try:
            content = file.read_bytes()
        except OSError:
            return None
        digest, trace = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if digest != _digest(key, trace):
            return None
        with contextlib.suppress(OSError):  # another process may have discarded it, or the folder is read-only
            os.utime(file)
        return trace

    def put(self, key: str, trace: bytes) -> None:
        """Keep a trace in place of what is under its key, and discard the oldest beyond the bounds."""
        with contextlib.suppress(OSError, WritingError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self._file(key), _digest(key, trace) + trace)
            self._discard_oldest()

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.trace"

    def _discard_oldest(self) -> None:
        entries = []
        for file in self.folder.iterdir():
            if _OWN.fullmatch(file.name):
                with contextlib.suppress(FileNotFoundError):  # another process discards too
                    status = file.stat()
                    entries.append((status.st_mtime_ns, file, status.st_size))
        total = 0
        for i, (_, file, size) in enumerate(sorted(entries, reverse=True)):
            total += size
            if total > self.most_bytes or i >= self.most_entries:
                file.unlink(missing_ok=True)


def trace_cache() -> TraceCache | None:
    """The folder that the environment names, if it names one."""
    folder = os.environ.get(VARIABLE)
    return TraceCache(Path(folder)) if folder else None


def _digest(key: str, trace: bytes) -> bytes:
    return hashlib.sha256(key.encode() + trace).digest()
