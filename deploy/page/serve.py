"""A server for one bundle and this machine alone: its page, its graphs, and nothing else.

Pages may share memory between threads only where the server isolates them from other origins (COOP and COEP, HTML standard,
"cross-origin isolation"): without these headers onnxruntime-web computes with one thread.
"""

from __future__ import annotations

import http.server
import re
import shutil
import socketserver
from collections.abc import Callable
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from deploy.bundle.folder import Bundle
from deploy.bundle.manifest import NAME
from deploy.errors import Complaint, InputError
from deploy.page.page import INDEX
from exporters.links import is_own

LOOPBACK = "127.0.0.1"
HOST = re.compile(r"(localhost|127\.0\.0\.1)(:\d{1,5})?", re.IGNORECASE)
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",  # anything else would be compiled only after it has come whole
}
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Nothing but this server is ever asked; onnxruntime-web starts its threads from blobs and compiles WebAssembly.
    "Content-Security-Policy": "default-src 'self' blob:; script-src 'self' blob: 'wasm-unsafe-eval'; img-src 'self' data: blob:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked again each time, and answered with 304: another build may be served here tomorrow
}


class Server(http.server.ThreadingHTTPServer):
    """Serves one bundle on the loopback interface.

    Args:
        bundle: an opened bundle.
        port: 0 lets the system choose.

    Raises:
        InputError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, bundle: Bundle, port: int = 0) -> None:
        self.bundle = bundle
        self.entity_tags = {record.path: f'"{record.sha256}"' for record in bundle.manifest.files} | {NAME: ""}
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            complaint = Complaint("--port", str(getattr(error, "strerror", None) or error), "a free port", str(port))
            raise InputError("The server cannot be started.", [complaint], "--port 0 takes any that is free") from error

    def server_bind(self) -> None:
        """Bind without asking name servers what this machine is called, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser that hangs up in the middle of a file is none."""


def serve(bundle: Bundle, port: int, ready: Callable[[str], None]) -> None:
    """Serve a bundle until Ctrl-C.

    Args:
        bundle: an opened bundle.
        port: 0 lets the system choose.
        ready: called with the page's address once it can be asked for.

    Raises:
        InputError: the port cannot be had.
    """
    with Server(bundle, port) as server:
        try:
            ready(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Handler(http.server.BaseHTTPRequestHandler):
    """Only files that the manifest lists are known by name, so that no path leads anywhere else."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "flash-deploy"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page asks for dozens of files."""

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/") or INDEX
        if not HOST.fullmatch(self.headers.get("Host", "")):  # a foreign name that was led to this address
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
        elif path not in self.server.entity_tags:
            self._refuse(HTTPStatus.NOT_FOUND)
        elif (tag := self.server.entity_tags[path]) and self.headers.get("If-None-Match") == tag:
            self._head(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
        else:
            self._send(path, tag, with_body)

    def _send(self, path: str, tag: str, with_body: bool) -> None:
        file = self.server.bundle.file(path)
        if not (file.is_file() and is_own(file, self.server.bundle.folder)):  # removed or replaced since the bundle was opened
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with file.open("rb") as stream:
            size = file.stat().st_size
            wanted = _range(self.headers.get("Range", ""), size)
            if wanted is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
                return
            headers = {
                "Content-Type": CONTENT_TYPES.get(PurePosixPath(path).suffix, "application/octet-stream"),
                "Content-Length": str(len(wanted)),
                "Accept-Ranges": "bytes",
            }
            if tag:
                headers["ETag"] = tag
            if len(wanted) != size:
                headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
            self._head(HTTPStatus.OK if len(wanted) == size else HTTPStatus.PARTIAL_CONTENT, headers)
            if with_body:
                stream.seek(wanted.start)
                shutil.copyfileobj(_Limited(stream, len(wanted)), self.wfile, 1 << 20)

    def _refuse(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        body = f"{status.value} {status.phrase}\n".encode()
        self._head(status, {"Content-Type": "text/plain", "Content-Length": str(len(body))} | (headers or {}))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        self.end_headers()


class _Limited:
    """The next bytes of a stream, and no more."""

    def __init__(self, stream: Any, count: int) -> None:
        self._stream, self._left = stream, count

    def read(self, size: int = -1, /) -> bytes:
        block: bytes = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(block)
        return block


def _range(header: str, size: int) -> range | None:
    """The bytes that a ``Range`` header asks for (RFC 9110, 14.2); all where it asks for none, or for several ranges.

    >>> _range("bytes=2-", 10), _range("bytes=0-3", 10), _range("bytes=-3", 10), _range("bytes=12-", 10)
    (range(2, 10), range(0, 4), range(7, 10), None)
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip(), re.ASCII)
    if not match or not any(match.groups()):
        return range(size)
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size) if int(last) else None
    stop = min(size, int(last) + 1) if last else size
    return range(int(first), stop) if int(first) < stop else None
