"""The metrics port: health, metrics and links over as much HTTP/1.1 as that needs."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

log = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 16 << 10
TIMEOUT_SECONDS: Final = 5.0
_REASONS: Final = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


Handler = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """One answer per connection; bodies are not read. `handlers`: by (method, path)."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @classmethod
    async def start(
        cls, listening: socket.socket, handlers: Mapping[tuple[str, str], Handler]
    ) -> "HttpServer":
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    response = await _answer(reader, handlers)
                    writer.write(_encode(response))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
            except (TimeoutError, OSError) as error:
                log.debug("a request on the metrics port ended: %s", error or "too slow")
            finally:
                writer.close()

        return cls(await asyncio.start_server(serve, sock=listening, limit=MAX_HEAD_BYTES))

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()


async def _answer(
    reader: asyncio.StreamReader, handlers: Mapping[tuple[str, str], Handler]
) -> Response:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        return Response(b"not a request\n", 400)
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    path, _, query = target.partition("?")
    handler = handlers.get((method, path))
    if handler is None:
        known = ", ".join(f"{m} {p}" for m, p in handlers)
        return Response(f"here are: {known}\n".encode(), 404)
    return await handler(Request(method, path, parse_qs(query), headers))


def _encode(response: Response) -> bytes:
    head = (
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}\r\n"
        f"content-type: {response.content_type}\r\ncontent-length: {len(response.body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + response.body
