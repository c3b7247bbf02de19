"""How kopf's own words come into the operator's log."""

import asyncio
import logging
from typing import Any

import aiohttp
import kopf
import pytest
from kopf._cogs.clients import api

from distserve.operator.watching import retries_warn


class Refuses:
    """A session in which no server answers."""

    closed = False

    async def request(self, **_: Any) -> Any:
        raise aiohttp.ClientConnectionError("no route")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """(level, message) of what kopf says of a request that fails twice."""
    caplog.handler.addFilter(retries_warn)
    settings = kopf.OperatorSettings()
    settings.networking.error_backoffs = [0.0]
    logger = logging.getLogger("kopf._cogs.clients.watching")
    context: Any = type("Context", (), {"session": Refuses(), "server": "http://127.0.0.1"})()

    async def ask() -> None:
        ask_once: Any = api.request.__wrapped__
        await ask_once("get", "/x", settings=settings, logger=logger, context=context)

    with pytest.raises(aiohttp.ClientConnectionError):
        asyncio.run(ask())
    caplog.handler.removeFilter(retries_warn)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_retry_is_no_error_and_the_end_of_them_is(told: list[tuple[str, str]]) -> None:
    (first, retried), (last, given_up) = told
    assert first == "WARNING" and "will retry" in retried
    assert last == "ERROR" and "escalating" in given_up
