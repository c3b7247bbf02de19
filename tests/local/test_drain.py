"""`distserve drain` against an engine that is slow, silent, or something else."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distserve.cli import drain
from distserve.cli.main import main

Drain = Callable[..., int]
BOUND = 20.0


class StubEngine:
    """Answers with `reports` one by one, the last one for ever; None is silence until `go`."""

    def __init__(self, *reports: object) -> None:
        self.reports = list(reports)
        self.asked: list[str] = []
        self.go = threading.Event()

    def answer(self, method: str) -> bytes | None:
        self.asked.append(method)
        report = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        return None if report is None else json.dumps(report).encode()


def _handler(stub: StubEngine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = stub.answer(self.command)
            if body is None:
                stub.go.wait(BOUND)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def served(stub: StubEngine) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        stub.go.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Drain:
    key = tmp_path / "key"
    key.write_text("k" * 32)

    def run(stub: StubEngine, deadline: str = "20s") -> int:
        with served(stub) as url:
            return main(
                ["drain", "--url", url, "--key-file", str(key), "--drain-deadline", deadline]
            )

    return run


BUSY = {"draining": True, "requests": 3, "empty": False}
EMPTY = {"draining": True, "requests": 0, "empty": True}


def test_it_waits_until_the_engine_is_empty(run: Drain) -> None:
    stub = StubEngine(BUSY, BUSY, EMPTY)
    assert run(stub) == 0
    assert stub.asked == ["POST", "GET", "GET"]


def test_no_proxy_is_asked(run: Drain, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert run(StubEngine(EMPTY)) == 0


@pytest.mark.parametrize("before", [(), (BUSY,)], ids=["when told", "when asked"])
def test_an_answer_that_comes_late_is_asked_for_again(
    run: Drain, monkeypatch: pytest.MonkeyPatch, before: tuple[object, ...]
) -> None:
    monkeypatch.setattr(drain, "CALL_SECONDS", 0.1)
    assert run(StubEngine(*before, None, None, EMPTY)) == 0


@pytest.mark.parametrize(
    ("report", "deadline", "said"),
    [
        (BUSY, "2s", "3 requests are left at the deadline"),
        (None, "300ms", "/drain was silent at the deadline"),
        ({"status": "ok"}, "2s", "answers, but not as an engine: correct --url"),
        ("hello", "2s", "answers, but not as an engine: correct --url"),
    ],
    ids=["busy", "silent", "no engine", "no report"],
)
def test_what_else_ends_it_is_one_line(
    run: Drain, capsys: pytest.CaptureFixture[str], report: object, deadline: str, said: str
) -> None:
    assert run(StubEngine(report), deadline=deadline) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(said)
