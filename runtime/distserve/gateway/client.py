"""The gateway's side of the Dialect: everything that is said to an engine goes through here."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar

import aiohttp
import msgspec

from distserve.gateway.keepalive import kept_alive
from distserve.wire.dialect import (
    AbortLeg,
    InstanceInfo,
    InstanceState,
    KvEvent,
    Leg,
    LegError,
    LegEvent,
    ReleaseTransfer,
)

T = TypeVar("T")

MAX_LINE_BYTES = 64 << 20
"""Bound of one event: the prompt scores of a long prompt, or all hashes of a large cache."""
MAX_FILE_BYTES = 256 << 20
CONNECT_SECONDS = 3.0
CALL_SECONDS = 5.0
STALE_SECONDS = 5.0
"""An engine writes a state line every second; this long without one, and it is not well."""

_EVENTS: msgspec.json.Decoder[LegEvent] = msgspec.json.Decoder(LegEvent)
_STATES = msgspec.json.Decoder(InstanceState)
_KV_EVENTS = msgspec.json.Decoder(KvEvent)
_ERROR = msgspec.json.Decoder(LegError)

NONSENSE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises: for what is no JSON or no such type, for broken text, for deep nesting."""
ENGINE_ERRORS = (aiohttp.ClientError, TimeoutError, OSError, *NONSENSE)
"""All that can go wrong between gateway and engine: connection, silence, nonsense."""


class LineTooLong(aiohttp.ClientPayloadError):
    """More than MAX_LINE_BYTES without an end."""


class EngineClient:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def instance(self, url: str) -> InstanceInfo:
        body = await self._get(f"{url}/instance", limit=1 << 20)
        return msgspec.json.decode(body, type=InstanceInfo)

    async def files(self, url: str, wanted: Mapping[str, str]) -> dict[str, bytes]:
        """Contents by name; each is checked against its sha256."""
        found = {}
        for name, digest in wanted.items():
            body = await self._get(f"{url}/instance/files/{name}", limit=MAX_FILE_BYTES)
            if hashlib.sha256(body).hexdigest() != digest:
                raise aiohttp.ClientPayloadError(f"{url}: {name} does not have its sha256")
            found[name] = body
        return found

    async def states(self, url: str) -> AsyncGenerator[InstanceState, None]:
        async for line in self._lines(f"{url}/state", _STATES, silence_seconds=STALE_SECONDS):
            yield line

    async def kv_events(self, url: str) -> AsyncGenerator[KvEvent, None]:
        async for line in self._lines(f"{url}/kv-events", _KV_EVENTS, silence_seconds=None):
            yield line

    async def leg(
        self, url: str, leg: Leg, headers: Mapping[str, str]
    ) -> AsyncGenerator[LegEvent, None]:
        """The leg's events. A refusal (any status but 200) is a LegError as well."""
        timeout = aiohttp.ClientTimeout(
            total=leg.timeout_ms / 1000 + CALL_SECONDS, sock_connect=CONNECT_SECONDS
        )
        async with self._session.post(
            f"{url}/legs",
            data=msgspec.json.encode(leg),
            headers={"Content-Type": "application/json", **headers},
            timeout=timeout,
            allow_redirects=False,
        ) as answer:
            if answer.status != 200:
                yield _refusal(answer.status, await answer.content.read(1 << 16))
                return
            async for event in json_lines(answer, _EVENTS):
                yield event

    async def abort(self, url: str, leg: str) -> None:
        await self._post(f"{url}/abort", AbortLeg(leg))

    async def release(self, url: str, transfer: str) -> None:
        await self._post(f"{url}/release", ReleaseTransfer(transfer))

    async def _get(self, url: str, limit: int) -> bytes:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=CALL_SECONDS
        )
        async with self._session.get(url, timeout=timeout, allow_redirects=False) as answer:
            answer.raise_for_status()
            body = bytearray()
            async for part in answer.content.iter_any():
                body += part
                if len(body) > limit:
                    raise aiohttp.ClientPayloadError(f"{url} is longer than {limit} bytes")
            return bytes(body)

    async def _post(self, url: str, body: msgspec.Struct) -> None:
        async with self._session.post(
            url,
            data=msgspec.json.encode(body),
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
            allow_redirects=False,
        ) as answer:
            answer.raise_for_status()

    async def _lines(
        self, url: str, decoder: "msgspec.json.Decoder[T]", silence_seconds: float | None
    ) -> AsyncGenerator[T, None]:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=silence_seconds
        )
        async with self._session.get(url, timeout=timeout, allow_redirects=False) as answer:
            answer.raise_for_status()
            async for line in json_lines(answer, decoder):
                yield line


def _refusal(status: int, body: bytes) -> LegError:
    try:
        return _ERROR.decode(body)
    except msgspec.MsgspecError:
        text = body[:200].decode(errors="replace")
        retryable = status >= 500 or status in {401, 403, 404, 408, 425, 429}
        return LegError(f"engine answered {status}: {text}", retryable, status)


async def json_lines(
    answer: aiohttp.ClientResponse, decoder: "msgspec.json.Decoder[T]"
) -> AsyncGenerator[T, None]:
    """JSON lines. All lines of one read come without a pause between them. A long line takes time
    in proportion to its length: what was read is looked through once, and put together at its end.
    Raises LineTooLong."""
    pieces: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        *ends, rest = part.split(b"\n")
        for end in ends:
            _check_length(size + len(end))
            if line := b"".join([*pieces, end]):
                yield decoder.decode(line)
            pieces, size = [], 0
        pieces.append(rest)
        size += len(rest)
        _check_length(size)


def _check_length(size: int) -> None:
    if size > MAX_LINE_BYTES:
        raise LineTooLong(f"a line is longer than {MAX_LINE_BYTES} bytes")


def make_session(headers: Mapping[str, str], **options: Any) -> aiohttp.ClientSession:
    """No bound on connections: each running leg holds one, and admission bounds the legs."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30, socket_factory=kept_alive)
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        loop=asyncio.get_running_loop(),
        auto_decompress=False,
        **options,
    )
