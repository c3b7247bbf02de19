"""HTTP for the kubelet and Prometheus: /healthz, /readyz and /metrics."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Trouble = Callable[[], str]
"""What is wrong, empty when nothing is."""


class PortTaken(Exception):
    """The message says which."""


@contextlib.asynccontextmanager
async def serve_probes(
    host: str, port: int, healthy: Trouble, ready: Trouble
) -> AsyncIterator[int]:
    """Yields the port, which matters when 0 was asked for. Raises PortTaken."""

    async def healthz(_: web.Request) -> web.Response:
        return _said(healthy())

    async def readyz(_: web.Request) -> web.Response:
        return _said(healthy() or ready())

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    async with serving(app, host, port) as bound:
        yield bound


@contextlib.asynccontextmanager
async def serve_metrics(host: str, port: int, registry: CollectorRegistry) -> AsyncIterator[int]:
    """Yields the port. Raises PortTaken."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with serving(app, host, port) as bound:
        yield bound


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Yields the port. Raises PortTaken."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except OSError as error:
            raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror}") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _said(trouble: str) -> web.Response:
    return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)
