"""The webhook as a server: real sockets, broken requests, certificates that change on disk."""

import asyncio
import contextlib
import gzip
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from distserve.operator import webhook as module
from distserve.operator.certificates import Term, make_pair
from distserve.operator.tls import CertificateUnusable, Identity, keep_fresh, read_files
from distserve.operator.webhook import MAX_BODY_BYTES, SMALL_BYTES, TOGETHER, Webhook

Ask = Callable[..., Any]
REFUSED = "spec.units: too many; choose fewer"
REVIEW = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}


class Judging:
    """What the webhook is asked around."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.unready = ""
        self.said: str | Exception = ""
        self.seen: list[Any] = []

    def judge(self, request: Any) -> str:
        self.seen.append(request)
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


@pytest.fixture
def judging() -> Judging:
    return Judging()


@pytest.fixture
async def ask(
    judging: Judging, names: Sequence[str], now: datetime, term: Term
) -> AsyncIterator[Ask]:
    """ask(body) -> (status, answer)."""
    pair, authority = make_pair(names, now, term.life)
    identity = Identity()
    identity.use(pair.certificate, pair.key)
    trust = ssl.create_default_context(cadata=authority)
    webhook = Webhook(judging.judge, lambda: judging.unready, judging.outcomes.append)
    async with (
        webhook.serve("127.0.0.1", 0, identity.context) as port,
        aiohttp.ClientSession() as session,
    ):
        url = f"https://localhost:{port}/validate?timeout=5s"

        async def send(body: Any, **how: Any) -> tuple[int, Any]:
            given = {"json": body} if isinstance(body, dict) else {"data": body}
            async with session.post(url, ssl=trust, **given, **how) as answer:
                is_json = answer.content_type == "application/json"
                return answer.status, await (answer.json() if is_json else answer.text())

        yield send


async def test_yes_and_no(ask: Ask, judging: Judging) -> None:
    request = {"uid": "r1", "operation": "CREATE"}
    status, answer = await ask({**REVIEW, "request": request})
    assert (status, answer) == (200, {**REVIEW, "response": {"uid": "r1", "allowed": True}})
    judging.said = REFUSED
    status, answer = await ask({**REVIEW, "request": {**request, "uid": "r2"}})
    refused = {"code": 422, "reason": "Invalid", "message": REFUSED}
    assert (status, answer["response"]) == (
        200,
        {"uid": "r2", "allowed": False, "status": refused},
    )
    assert [one["uid"] for one in judging.seen] == ["r1", "r2"]
    assert judging.outcomes == ["allowed", "denied"]


async def test_our_own_faults_let_it_pass(
    ask: Ask, judging: Judging, caplog: pytest.LogCaptureFixture
) -> None:
    review = {**REVIEW, "request": {"uid": "r1", "name": "tiny"}}
    judging.said = KeyError("spec")
    status, answer = await ask(review)
    assert status == 200 and answer["response"]["allowed"]
    (warning,) = answer["response"]["warnings"]
    assert "KeyError" in warning and len(warning) < 120, "kubectl cuts longer ones"
    assert "a review failed" in caplog.text
    judging.said, judging.unready = REFUSED, "not everything has been listed yet"
    status, answer = await ask(review)
    assert status == 200 and answer["response"]["allowed"]
    assert judging.unready in answer["response"]["warnings"][0]
    assert judging.outcomes == ["failed", "failed"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"request": {}}', b'{"request": 1}'])
async def test_what_is_no_review(ask: Ask, judging: Judging, body: bytes) -> None:
    status, said = await ask(body)
    assert status == 400 and "AdmissionReview" in said
    assert judging.seen == []


async def test_a_body_is_bounded_in_size_and_time(
    ask: Ask, judging: Judging, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _ = await ask(io.BytesIO(b" " * (MAX_BODY_BYTES + 1)))
    assert status == 413
    monkeypatch.setattr(module, "READ_SECONDS", 0.05)
    never = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    status, _ = await asyncio.wait_for(ask(trickle()), 20)
    assert status == 408
    assert judging.seen == []


async def test_a_connection_without_a_review_is_ended(
    names: Sequence[str], now: datetime, term: Term, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.1)
    pair, authority = make_pair(names, now, term.life)
    identity = Identity()
    identity.use(pair.certificate, pair.key)
    trust = ssl.create_default_context(cadata=authority)
    webhook = Webhook(lambda _: "", lambda: "")
    async with webhook.serve("127.0.0.1", 0, identity.context) as port:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trust, server_hostname="localhost"
        )
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        await writer.wait_closed()


async def test_only_so_many_large_bodies_are_read_at_a_time(
    ask: Ask, judging: Judging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 60.0)
    body = json.dumps({**REVIEW, "request": {"uid": "slow"}}).encode()
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        begun.release()  # The server has said that it reads.
        yield body[:1]
        await go_on.wait()
        yield body[1:]

    slow = [asyncio.create_task(ask(slowly(), expect100=True)) for _ in range(TOGETHER)]
    for _ in slow:
        await asyncio.wait_for(begun.acquire(), 20)
    status, _ = await asyncio.wait_for(ask({**REVIEW, "request": {"uid": "small"}}), 20)
    assert status == 200, "a small one waits for nobody"
    large = {"uid": "late", "object": "x" * SMALL_BYTES}
    late = asyncio.create_task(ask({**REVIEW, "request": large}))
    packed = gzip.compress(json.dumps({**REVIEW, "request": {"uid": "packed"}}).encode())
    said = {"Content-Encoding": "gzip"}
    other = asyncio.create_task(ask(io.BytesIO(packed), headers=said))
    done, _ = await asyncio.wait({late, other}, timeout=0.3)
    assert not done and [one["uid"] for one in judging.seen] == ["small"]
    go_on.set()
    answers = await asyncio.wait_for(asyncio.gather(*slow, late, other), 20)
    assert [status for status, _ in answers] == [200] * (TOGETHER + 2)


async def test_files_of_a_folder_are_read_when_they_change(
    tmp_path: Path, names: Sequence[str], now: datetime, term: Term
) -> None:
    """As the kubelet exchanges them: one link, to a folder with all of them."""
    identity = Identity()
    with pytest.raises(CertificateUnusable, match=r"tls\.crt: No such file"):
        await read_files(tmp_path, identity)
    pairs = [make_pair(names, now, term.life) for _ in range(2)]
    for number, (pair, _) in enumerate(pairs):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "tls.crt").write_text(pair.certificate)
        (folder / "tls.key").write_text(pair.key)
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")

    def exchange(number: int) -> None:
        (tmp_path / "..new").symlink_to(f"..{number}")
        (tmp_path / "..new").rename(tmp_path / "..data")

    webhook = Webhook(lambda _: "", lambda: "")

    async def look() -> None:
        await read_files(tmp_path, identity)

    async with webhook.serve("127.0.0.1", 0, identity.context) as port:
        following = asyncio.create_task(keep_fresh(look, identity, 0.02))

        async def served_by(authority: str) -> None:
            trust = ssl.create_default_context(cadata=authority)
            async with asyncio.timeout(20):
                while True:
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection(
                            "127.0.0.1", port, ssl=trust, server_hostname="localhost"
                        )
                        writer.close()
                        await writer.wait_closed()
                        return
                    await asyncio.sleep(0.02)

        for number, (_, authority) in enumerate(pairs):
            exchange(number)
            await served_by(authority)
        assert not following.done()
        following.cancel()


async def test_looking_goes_on_after_any_failure(caplog: pytest.LogCaptureFixture) -> None:
    looks = 0
    enough = asyncio.Event()

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 4:
            enough.set()
        raise RuntimeError("no API server")

    following = asyncio.create_task(keep_fresh(look, Identity(), 0.01))
    await asyncio.wait_for(enough.wait(), 20)
    following.cancel()
    assert caplog.text.count("no API server") == 1, "the same is not said twice"
