"""A stub of a hub: the two endpoints that a download needs, with faults on request."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMITS = {"main": "a" * 40, "next": "b" * 40}
TOKEN = "hf_secret"


@dataclass
class StubHub:
    files: dict[str, bytes] = field(
        default_factory=lambda: {
            "config.json": b'{"model_type": "llama"}',
            "tokenizer.json": b"{}",
            "model.safetensors": bytes(range(256)) * 49_152,
            "pytorch_model.bin": b"unsafe",
            "onnx/model.onnx": b"not for us",
            "README.md": b"# words",
        }
    )
    commits: dict[str, str] = field(default_factory=lambda: dict(COMMITS))
    wrong: set[str] = field(default_factory=set)
    """Files that are served changed."""
    stall_at: int | None = None
    """Large files stop after so many bytes, until `go`."""
    go: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, int]] = field(default_factory=list)
    """(file, first byte), of each download."""
    needs_token: bool = False
    url: str = ""

    def listing(self, commit: str) -> bytes:
        def sibling(name: str, content: bytes) -> dict[str, object]:
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            found: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith((".safetensors", ".bin")):
                digest = hashlib.sha256(content).hexdigest()
                found["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 1}
            return found

        siblings = [sibling(*item) for item in self.files.items()]
        return json.dumps({"id": "org/model", "sha": commit, "siblings": siblings}).encode()


def _handler(stub: StubHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            commits = stub.commits | {c: c for c in stub.commits.values()}
            if stub.needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._refuse(401, "RepoNotFound")
            elif path.startswith("/api/models/org/model/revision/"):
                commit = commits.get(path.rpartition("/")[2])
                if commit is None:
                    self._refuse(404, "RevisionNotFound")
                else:
                    self._send(200, stub.listing(commit))
            elif path.startswith("/org/model/resolve/"):
                self._file(path.split("/", 5)[5])
            else:
                self._refuse(404, "RepoNotFound")

        def _file(self, name: str) -> None:
            content = stub.files[name]
            if name in stub.wrong:
                content = content[:-1] + b"?"
            asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
            first = int(asked.partition("-")[0])
            stub.asked.append((name, first))
            self._send(206 if first else 200, content[first:], len(content), first)

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"{}", code=code)

        def _send(
            self, status: int, body: bytes, whole: int = 0, first: int = 0, code: str = ""
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if stub.stall_at is not None and first + len(body) > stub.stall_at:
                now = max(0, stub.stall_at - first)
                self.wfile.write(body[:now])
                self.wfile.flush()
                stub.go.wait(60)
                body = body[now:]
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

    return Handler


@pytest.fixture
def stub() -> Iterator[StubHub]:
    stub = StubHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield stub
    finally:
        stub.go.set()
        server.shutdown()
        server.server_close()
        thread.join()
