"""A deployment that is measured."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from tests.profile.stub import Stub


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    stub = Stub()
    app = web.Application()
    app.router.add_post("/v1/completions", stub.completions)
    app.router.add_get("/stats", stub.stats)
    app.router.add_get("/v1/models", stub.models)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield stub
    await runner.cleanup()
