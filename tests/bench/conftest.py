"""A server that answers as an OpenAI server would, well or badly, as the model's name asks."""

import asyncio
import gc
import json
import os
import pty
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.bench.reports import rows

from distserve.bench import session
from distserve.cli.main import main


@dataclass
class Stub:
    """What was asked, and where it listens."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    after: int | None = None
    """Requests from this one on are answered as `then` names a model; None for never."""
    then: str = "busy"
    lifecycle: Any = None
    """Told with each answer."""
    longest: int | None = None
    """Tokens of a prompt and its answer that are taken; None: any."""

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        model, tokens = body["model"], body["max_tokens"]
        if self.after is not None and len(self.bodies) > self.after:
            model = self.then
        if model == "busy":
            return refusal(429, "too many prompts wait")
        if model == "overloaded":
            asked = len(self.bodies)
            return refusal(503, f"overloaded, {10 * asked} wait, id req-{asked}f")
        if model == "hangs":
            await asyncio.Event().wait()  # until its client has gone
        if model == "refuses":
            return refusal(500, "the engine\nis gone")
        if model == "moved":
            return web.Response(status=307, headers={"location": f"{self.url}/v2/completions"})
        if model == "page":
            return web.Response(text="<html>Welcome</html>", content_type="text/html")
        if model == "mumbles":
            return web.Response(status=502, body=b"\xff\xfe bad gateway", content_type="text/html")
        if model in ("plain", "exact") and "stream_options" in body:
            status = 400 if model == "plain" else 422
            return refusal(status, "stream_options: unknown field")
        if model == "small":
            return refusal(400, "this model's maximum context length is 8 tokens")
        if self.longest is not None and prompt_tokens(body) + tokens > self.longest:
            return refusal(400, f"this model's maximum context length is {self.longest} tokens")
        if model == "unknown":
            return refusal(404, "the model `unknown` does not exist")
        if model == "strict" and "ignore_eos" in body:
            return refusal(400, "ignore_eos: unknown field")
        if model == "breaks":
            return await broken_off(request, 503)
        prompt = prompt_tokens(body) + (model == "adds")
        if not body["stream"]:
            if model == "truncates":
                return await broken_off(request, 200)
            found = web.json_response(whole(model, tokens, prompt) | {"lifecycle": self.lifecycle})
            if model == "squeezes":
                found.enable_compression()  # where the client takes it
            return found
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        if model == "squeezes":
            answer.enable_compression()
        await answer.prepare(request)
        for event in events(model, tokens, prompt, body, self.lifecycle):
            await answer.write(event)
            await asyncio.sleep(0)
        if model == "truncates":
            assert request.transport
            request.transport.abort()
        return answer


def prompt_tokens(body: dict[str, Any]) -> int:
    """Ids as they are; of a text, its words."""
    prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    return len(prompt.split() if isinstance(prompt, str) else prompt)


async def broken_off(request: web.Request, status: int) -> web.StreamResponse:
    """More is promised than comes."""
    headers = {"content-type": "application/json", "content-length": "1000"}
    answer = web.StreamResponse(status=status, headers=headers)
    await answer.prepare(request)
    await answer.write(b'{"choices": [')
    assert request.transport
    request.transport.abort()
    return answer


def whole(model: str, tokens: int, prompt: int) -> dict[str, Any]:
    if model == "fails":
        return {"error": {"message": "an engine died", "code": "engine_failed"}}
    if model == "null":
        return {"choices": None}
    came = tokens // 2 if model == "short" else tokens
    choice = {"text": "x" * came, "finish_reason": None if model == "unfinished" else "length"}
    usage = {"prompt_tokens": prompt, "completion_tokens": came}
    return {
        "choices": [] if model == "silent" else [choice],
        **({} if model == "uncounted" else {"usage": usage}),
    }


def events(
    model: str, tokens: int, prompt: int, body: dict[str, Any], lifecycle: Any
) -> list[bytes]:
    running = (body.get("stream_options") or {}).get("continuous_usage_stats", False)
    chat = "messages" in body

    def choice(text: str, finish: str | None) -> dict[str, Any]:
        return {
            "index": 0,
            "finish_reason": finish,
            **({"delta": {"content": text}} if chat else {"text": text}),
        }

    step = 2 if model == "pairs" else 1
    end = tokens // 2 if model in ("truncates", "fails", "short") else tokens
    found: list[dict[str, Any]] = []
    for index in range(0, end, step):
        count = min(index + step, end)
        last = count == tokens or (model == "short" and count == end)
        event: dict[str, Any] = {"choices": [choice("x", "length" if last else None)]}
        if running:
            event["usage"] = {"prompt_tokens": prompt, "completion_tokens": count}
        found.append(event)
    if model == "fails":
        found.append({"error": {"message": "an engine died", "code": "engine_failed"}})
    if model not in ("truncates", "fails") and (body.get("stream_options") or {}):
        last_usage = {"prompt_tokens": prompt, "completion_tokens": end}
        found.append({"choices": [], "usage": last_usage, "lifecycle": lifecycle})
    if model == "null":
        found.append({"choices": None})
    if model == "silent":
        found = []
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in found]
    if model == "garbles":
        lines.append(b'data: {"choices": [{"text": "\xff"}]}\n\n')
    return lines if model == "truncates" else [*lines, b"data: [DONE]\n\n"]


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "x"}}, status=status)


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pytest_collection_finish` put aside stays there: a run begins with a full collection,
    and would have looked through the tests of all rooms."""
    monkeypatch.setattr(gc, "unfreeze", lambda: None)


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A stub on a free port of 127.0.0.1, on a loop of its own in another thread."""
    stub = Stub()
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/completions", stub.complete)
        app.router.add_post("/v1/chat/completions", stub.complete)
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        runner = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
        yield stub
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@pytest.fixture
def bench(
    stub: Stub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str, str]]:
    """`distserve bench run`; (exit code, stdout, stderr).

    The lag that a busy test machine may have does not spoil it.
    """
    monkeypatch.setattr(session, "PATIENCE_SECONDS", 600.0)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(
            [
                "bench", "run", "--url", stub.url, "--model", "m", "--max-lag", "60s",
                "--dataset", "synthetic:fixed,prompt=6,output=4", "--warm-up", "1",
                "--output-dir", str(tmp_path), "--prefix", "sys",
                "--num-prompts-req-rates", "[(5,100)]", *words,
            ]
        )  # fmt: skip
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def terminal() -> Callable[[], AbstractContextManager[Callable[[], None]]]:
    """stderr is one for a while; by what is given it goes away."""

    @contextmanager
    def held() -> Iterator[Callable[[], None]]:
        ours, theirs = pty.openpty()
        with open(theirs, "w") as stream, redirect_stderr(stream):
            yield lambda: os.close(ours)

    return held


@pytest.fixture
def late_run(bench: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Callable[[], Path]:
    """`bench`'s run by a client that was late beyond all its limits; its `.run.json`."""

    def run() -> Path:
        assert bench()[0] == 0
        path = tmp_path / "sys-5-100.run.json"
        about = json.loads(path.read_text())
        about["lag"]["send_p99_ms"] = 3_600_000.0
        about["valid"] = False
        path.write_text(json.dumps(about))
        return path

    return run


@pytest.fixture
def no_room() -> Callable[[], AbstractContextManager[None]]:
    """Within it no file grows beyond 1,000 bytes: a disk that fills up while one is written."""

    @contextmanager
    def within() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return within


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two systems at two rates; one of them tells its stages."""
    for system, told in (("apart", True), ("together", False)):
        for rate, good in ((1, 10), (3, 8 if told else 4)):
            path = tmp_path / f"{system}-10-{rate}.exp"
            path.write_text(json.dumps(rows(good, 10 - good, told)))
    about = {"parameters": {"gpus": 2, "dataset": "synthetic:sharegpt"}, "valid": False}
    (tmp_path / "together-10-3.run.json").write_text(json.dumps(about))
    return tmp_path
