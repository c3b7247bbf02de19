"""The migrator as a process: servers, signals, exit code. Called by `distserve migrator`."""

import asyncio
import logging
import signal
from collections.abc import Iterable
from typing import Final

import msgspec

from distserve.migrator import addresses
from distserve.migrator.errors import TransportError
from distserve.migrator.http import Handler, HttpServer, Request, Response
from distserve.migrator.link import Link
from distserve.migrator.migrator import Config, Migrator
from distserve.wire import auth

log = logging.getLogger(__name__)

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class BindError(Exception):
    """A port or path is taken or not allowed; one line that says which."""


async def run(config: Config, metrics_port: int) -> None:
    """Until SIGTERM or SIGINT. Raises BindError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sent in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sent, stop.set)
    try:
        listening = addresses.listen(config.host, metrics_port)
    except OSError as error:
        raise BindError(_cannot(addresses.join(config.host, metrics_port), error)) from error
    migrator = Migrator(config)
    try:
        await migrator.start()
    except OSError as error:
        listening.close()
        where = error.filename or addresses.join(config.host, config.port)
        raise BindError(_cannot(where, error)) from error
    http = await HttpServer.start(listening, handlers(migrator, config.key))
    log.info("metrics on %s", addresses.join(*listening.getsockname()[:2]))
    await stop.wait()
    log.info("ending: %d offers and %d fetches", len(migrator.source), len(migrator.target))
    await migrator.drain()
    await http.close()
    await migrator.close()


def handlers(migrator: Migrator, key: bytes) -> dict[tuple[str, str], Handler]:
    """Ready is whoever listens: it must not wait for the engine, which waits for it."""

    async def healthy(request: Request) -> Response:
        return Response(b"ok\n")

    async def metrics(request: Request) -> Response:
        return Response(migrator.metrics.text(), content_type=METRICS_TYPE)

    async def links(request: Request) -> Response:
        if refusal := stranger(request):
            return refusal
        return shown(migrator.target.links)

    async def probe(request: Request) -> Response:
        if refusal := stranger(request):
            return refusal
        match request.query.get("peer", []):
            case []:
                await migrator.target.probe_all()
                return shown(migrator.target.links)
            case [peer]:
                try:
                    addresses.split(peer)
                except TransportError as error:
                    return Response(f"{error}\n".encode(), 400)
                return shown([await migrator.target.meet(peer)])
            case _:  # two probes at a time would measure one another
                return Response(b"one peer at a time\n", 400)

    def stranger(request: Request) -> Response | None:
        """Peers' addresses are not for everybody who may read metrics."""
        if auth.has_key(request.headers.get("authorization"), key):
            return None
        return Response(b"this needs the deployment key\n", 401)

    def shown(found: Iterable[Link]) -> Response:
        body = msgspec.json.encode({"links": {link.address: link.status for link in found}})
        return Response(body, content_type="application/json")

    return {
        ("GET", "/healthz"): healthy,
        ("GET", "/readyz"): healthy,
        ("GET", "/metrics"): metrics,
        ("GET", "/links"): links,
        ("POST", "/links"): probe,
    }


def _cannot(where: object, error: OSError) -> str:
    return f"cannot listen on {where}: {error.strerror}; is another migrator running there?"
