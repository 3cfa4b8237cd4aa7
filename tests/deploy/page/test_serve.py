from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.bundle.folder import Bundle
from deploy.errors import InputError
from deploy.page.serve import Server

AddPage = Callable[[Bundle, Path, Path | None], Bundle]


@pytest.fixture(scope="module")
def page_bundle(builtin_bundle: Bundle, add_page: AddPage, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = add_page(builtin_bundle, tmp_path_factory.mktemp("served") / "bundle", None)
    (bundle.folder / "secret.txt").write_text("not in the manifest")
    (bundle.folder.parent / "outside.txt").write_text("not in the bundle")
    return bundle


@pytest.fixture(scope="module")
def server(page_bundle: Bundle) -> Iterator[Server]:
    with Server(page_bundle) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """An answer as it is: no client library between that would tidy the path."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


@pytest.mark.parametrize(
    ("path", "file", "kind"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/index.html?seed=1", "index.html", "text/html; charset=utf-8"),
        ("/web/app.js", "web/app.js", "text/javascript; charset=utf-8"),
        ("/web/style%2Ecss", "web/style.css", "text/css; charset=utf-8"),
        ("/manifest.json", "manifest.json", "application/json"),
        ("/denoiser.onnx.data", "denoiser.onnx.data", "application/octet-stream"),
    ],
)
def test_files_of_the_bundle(path: str, file: str, kind: str, server: Server, page_bundle: Bundle) -> None:
    answer, body = ask(server, path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
    assert body == page_bundle.file(file).read_bytes()
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    head, nothing = ask(server, path, "HEAD")
    assert (head.status, head.headers["Content-Length"], nothing) == (200, str(len(body)), b"")


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/web/../secret.txt",
        "/web",
        "/web/",
        "/web\\app.js",
        "/manifest.json%00",
        "/WEB/app.js",
        "*",
    ],
)
def test_nothing_else(path: str, server: Server) -> None:
    answer, body = ask(server, path)
    assert (answer.status, body) == (404, b"404 Not Found\n")


def test_what_became_a_link_is_not_followed(builtin_bundle: Bundle, add_page: AddPage, tmp_path: Path) -> None:
    bundle = add_page(builtin_bundle, tmp_path / "bundle", None)
    (tmp_path / "secret").write_text("secret")
    with Server(bundle) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        file = bundle.folder / "web" / "style.css"
        file.unlink()
        statuses = [ask(server, "/web/style.css")[0].status]
        file.symlink_to(tmp_path / "secret")
        statuses.append(ask(server, "/web/style.css")[0].status)
        server.shutdown()
        thread.join()
    assert statuses == [404, 404]


def test_changing_requests_are_refused(server: Server) -> None:
    assert [ask(server, "/manifest.json", method)[0].status for method in ("POST", "PUT", "DELETE")] == [501] * 3


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:80", 200), ("127.0.0.1", 200), ("evil.example:80", 421), ("", 421), ("LOCALHOST", 200)]
    + [
        (host, 421)
        for host in ("[::1", "evil@localhost", "localhost/x", "localhost:", "localhost.evil.example", "localhost:1234567")
    ],
)
def test_foreign_names_are_refused(host: str, status: int, server: Server) -> None:
    """A page elsewhere may lead its own name to this address, and would then be of the same origin."""
    assert ask(server, "/manifest.json", Host=host)[0].status == status


@pytest.mark.parametrize(
    ("asked", "status", "got"),
    [
        ("bytes=0-3", 206, slice(0, 4)),
        ("bytes=5-", 206, slice(5, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=0-99999999999", 200, slice(None)),
        ("bytes=1-2,4-5", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
        (f"bytes=0-{'9' * 5000}", 200, slice(None)),
    ],
)
def test_ranges(asked: str, status: int, got: slice, server: Server, page_bundle: Bundle) -> None:
    content = page_bundle.file("denoiser.onnx").read_bytes()
    answer, body = ask(server, "/denoiser.onnx", Range=asked)
    assert (answer.status, body) == (status, content[got])
    if status == 206:
        start = len(content) - len(content[got]) if got.stop is None else 0
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/{len(content)}"


@pytest.mark.parametrize("asked", ["bytes=99999999999-", "bytes=4-2", "bytes=-0"])
def test_ranges_beyond_the_file(asked: str, server: Server, page_bundle: Bundle) -> None:
    answer, _ = ask(server, "/denoiser.onnx", Range=asked)
    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{page_bundle.file('denoiser.onnx').stat().st_size}"


def test_what_the_browser_has_is_not_sent_again(server: Server) -> None:
    tag = ask(server, "/denoiser.onnx")[0].headers["ETag"]
    again, body = ask(server, "/denoiser.onnx", If_None_Match=tag)
    assert (again.status, body) == (304, b"")
    assert ask(server, "/denoiser.onnx", If_None_Match='"other"')[0].status == 200


def test_several_requests_share_a_connection(server: Server, page_bundle: Bundle) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    for path in ("/nothing", "/denoiser.onnx", "/manifest.json"):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    assert body == page_bundle.file("manifest.json").read_bytes()
    connection.close()


def test_taken_port(server: Server, page_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=rf"--port: Address already in use \(expected a free port, got {server.server_port}\)"):
        Server(page_bundle, server.server_port)


def test_command_ends_cleanly(page_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "deploy.cli", "serve", "--port", "0", str(page_bundle.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=10)
        connection.request("GET", "/manifest.json")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=10)
        connection.close()
    assert process.returncode == 0
    assert "Traceback" not in messages
    assert "run `flash-deploy web-runtime -o DIR` and build it again with `--web-runtime DIR`" in messages


def test_bundle_without_page(builtin_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "deploy.cli", "serve", str(builtin_bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert "got a bundle of the tier desktop-cpu" in done.stderr
    assert "--tier browser" in done.stderr
