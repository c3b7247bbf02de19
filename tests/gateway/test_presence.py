"""A text that waits to be tokenised: as long as its request may take, and its client is there."""

import asyncio
import urllib.parse
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from tests.gateway.conftest import WAIT_SECONDS

ASKED = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [97]},
}
GONE = 'distserve_requests_total{code="499"}'


@pytest.fixture
def turn() -> Iterator[asyncio.Event]:
    """To tokenise: it comes when this is set."""
    made = asyncio.Event()
    yield made
    made.set()


def tokenises_later(house: Any, turn: asyncio.Event) -> None:
    async def wait(*args: Any, **kwargs: Any) -> Any:
        async with asyncio.timeout(WAIT_SECONDS):
            await turn.wait()

    text = house.gateway.models.current().text
    text.encode = text.decode = wait


@pytest.mark.parametrize("path", ASKED)
async def test_it_waits_no_longer_than_its_request_may(
    houses: Any, turn: asyncio.Event, path: str
) -> None:
    house = await houses(request_timeout_seconds=0.2)
    tokenises_later(house, turn)
    async with asyncio.timeout(WAIT_SECONDS / 2):
        status, answer, _ = await house.post(path, {"model": "test"} | ASKED[path])
    assert status == 504
    assert answer["error"]["code"] == "request_timeout"
    assert house.gateway.admission.waiting == 0


@pytest.mark.parametrize("path", ASKED)
async def test_who_left_keeps_no_place(houses: Any, turn: asyncio.Event, path: str) -> None:
    house = await houses()
    tokenises_later(house, turn)
    async with aiohttp.ClientSession() as http:
        body = {"model": "test"} | ASKED[path]
        headers = {"x-slo-ttft-ms": "0.001"}
        asking = asyncio.create_task(http.post(house.url + path, json=body, headers=headers))
        await house.until(lambda: house.gateway.admission.waiting == 1)
        asking.cancel()
        await asyncio.wait([asking])
    async with asyncio.timeout(WAIT_SECONDS / 2):
        while house.gateway.admission.waiting:
            await asyncio.sleep(0.01)
        while path.startswith("/v1/") and (await house.metrics())[GONE] == 0:
            await asyncio.sleep(0.01)
    judged = (await house.metrics())['distserve_slo_judged_total{objective="own"}']
    assert judged == path.startswith("/v1/"), "its first token was overdue when it left"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_who_left_while_it_sent_its_text_made_no_mistake(house: Any, path: str) -> None:
    at = urllib.parse.urlsplit(house.url)
    _, writer = await asyncio.open_connection(at.hostname, at.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f'{head}Content-Length: 100\r\n\r\n{{"model": '.encode())
    async with asyncio.timeout(WAIT_SECONDS / 2):
        while (await house.metrics())["distserve_requests_in_flight"] == 0:
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        while (await house.metrics())["distserve_requests_in_flight"] == 1:
            await asyncio.sleep(0.01)
    metrics = await house.metrics()
    codes = {code: metrics[f'distserve_requests_total{{code="{code}"}}'] for code in (400, 499)}
    assert codes == {400: 0, 499: 1}
