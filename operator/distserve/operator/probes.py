"""HTTP for the kubelet and Prometheus: /healthz, /readyz and /metrics."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Trouble = Callable[[], str]
"""What is wrong, empty when nothing is."""

IDLE_SECONDS = 10.0
"""For a request's head to come, from the connection's begin or the last answer. Kubelets open a
connection for each probe; Prometheus opens another one where this was too short."""
UNTAKEN_SECONDS = 30.0
"""In which a client takes nothing of its answer: it would be held for ever."""


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
    async with serving(app, host, port, IDLE_SECONDS) as bound:
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
    async with serving(app, host, port, IDLE_SECONDS) as bound:
        yield bound


@contextlib.asynccontextmanager
async def serving(
    app: web.Application,
    host: str,
    port: int,
    idle_seconds: float,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Yields the port. Raises PortTaken. Whoever keeps silent for too long is cut off, wherever in
    a request that is; for a body that nobody reads aiohttp waits 10 s."""
    app.on_response_prepare.append(_bound_untaken)
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=idle_seconds
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except OSError as error:
            raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror}") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _bound_untaken(http: web.Request, _: web.StreamResponse) -> None:
    """The kernel counts, since closing a connection waits for what is still to be sent."""
    if http.transport is not None:
        connection = http.transport.get_extra_info("socket")
        milliseconds = int(UNTAKEN_SECONDS * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _said(trouble: str) -> web.Response:
    return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)
