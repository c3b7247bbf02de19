"""A Hugging Face hub that is interrupted: serves one folder as org/model to who has the token.

The first download of the weights stops half way and hangs, those after it end in a wrong byte
until GET /repaired. GET /asked tells what was downloaded from which byte on.

    python hub.py PORT FOLDER TOKEN
"""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "a" * 40
WEIGHTS = "model.safetensors"
PADDING_BYTES = 24 << 20
"""Clients write to the disk in pieces of 10 MB; the small model is smaller."""
HANG_SECONDS = 300

asked: list[tuple[str, int]] = []
repaired = threading.Event()


def padded(weights: bytes) -> bytes:
    """The same tensors behind a longer header."""
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    header["__metadata__"] = {**header.get("__metadata__", {}), "padding": "." * PADDING_BYTES}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + weights[8 + length :]


def listing(files: dict[str, bytes]) -> bytes:
    siblings = []
    for name, content in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        about: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
        if name == WEIGHTS:
            digest = hashlib.sha256(content).hexdigest()
            about["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 1}
        siblings.append(about)
    return json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode()


def handler(files: dict[str, bytes], token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/asked":
                self._answer(200, json.dumps(asked).encode())
            elif path == "/repaired":
                repaired.set()
                self._answer(200, b"{}")
            elif self.headers.get("Authorization") != f"Bearer {token}":
                self._answer(401, b"{}", [("X-Error-Code", "RepoNotFound")])
            elif path.startswith("/api/models/org/model/revision/"):
                self._answer(200, listing(files))
            elif path.startswith(f"/org/model/resolve/{COMMIT}/"):
                self._file(path.rpartition("/")[2])
            else:
                self._answer(404, b"{}", [("X-Error-Code", "RepoNotFound")])

        def _file(self, name: str) -> None:
            content = files[name]
            span = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
            first = int(span.partition("-")[0])
            before = sum(one == name for one, _ in asked)
            asked.append((name, first))
            if name == WEIGHTS and not repaired.is_set():
                content = content[:-1] + bytes([content[-1] ^ 1])
            headers = []
            if first:
                last = len(content) - 1
                headers = [("Content-Range", f"bytes {first}-{last}/{last + 1}")]
            stop = len(content) * 2 // 3 if name == WEIGHTS and before == 0 else None
            self._answer(206 if first else 200, content[first:], headers, stop)

        def _answer(
            self,
            status: int,
            body: bytes,
            headers: list[tuple[str, str]] | None = None,
            stop: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in [("Content-Length", str(len(body))), *(headers or [])]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:stop])
            if stop is not None:
                self.wfile.flush()
                threading.Event().wait(HANG_SECONDS)
                self.close_connection = True

    return Handler


def main() -> None:
    port, folder, token = sys.argv[1:]
    files = {one.name: one.read_bytes() for one in Path(folder).iterdir() if one.is_file()}
    files[WEIGHTS] = padded(files[WEIGHTS])
    ThreadingHTTPServer(("", int(port)), handler(files, token)).serve_forever()


if __name__ == "__main__":
    main()
