"""HTTP to engines and migrators, with the deployment's key: what only they know of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from distserve.operator.pairs import Member
from distserve.resources import processes
from distserve.wire.auth import bearer

CALL_SECONDS: Final = 6.0
"""A migrator gives itself five for a peer that does not answer."""
CONNECT_SECONDS: Final = 2.0
"""Pods whose address nobody answers for are asked about soon enough again."""
INSTANCE_BYTES: Final = 1 << 20
"""Of an answer, which is a tenant's; chat templates are the longest part, of some 100 kB."""
LINKS_BYTES: Final = 64 << 10
"""It tells of one link, in some 300 bytes; earlier migrators told of all of them."""
T = TypeVar("T")


class NotAnswered(Exception):
    """Why there is no answer that makes sense."""


class WrongKey(NotAnswered):
    """It has another key than the one that was shown."""


class Instance(Struct, frozen=True):
    """Of `GET /instance`, what is of interest."""

    fingerprint: str
    migrator: str = ""
    """host:port at which peers reach its migrator; empty while it has none."""
    idle_seconds: float | None = None
    """For how long it has had no request. None: it is of a version that does not tell."""


class Probe(Struct, frozen=True):
    latency_ms: float
    bandwidth_bytes_per_second: float
    transport: str = ""


class PeerLink(Struct, frozen=True):
    """Of `POST /links`, of one peer."""

    state: str = ""
    transport: str = ""
    not_used: dict[str, str] = {}
    error: str = ""
    probe: Probe | None = None


class _Links(Struct, frozen=True):
    links: dict[str, PeerLink]


class Where(NamedTuple):
    """Base URLs of an instance's processes."""

    engine: str
    migrator: str


def in_cluster(member: Member) -> Where:
    host = f"[{member.host}]" if ":" in member.host else member.host
    return Where(
        f"http://{host}:{processes.ENGINE_PORT}", f"http://{host}:{processes.MIGRATOR_METRICS_PORT}"
    )


class Asking:
    """Every call has a bound. Raises NotAnswered."""

    def __init__(self, where: Callable[[Member], Where] = in_cluster) -> None:
        self._where = where
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def instance(self, member: Member, key: bytes) -> Instance:
        url = f"{self._where(member).engine}/instance"
        return await self._call("GET", url, {}, key, Instance, INSTANCE_BYTES)

    async def measure(self, reader: Member, peer: str, key: bytes) -> PeerLink:
        """Has the reader's migrator meet this peer and measure the link, unless it is busy."""
        url = f"{self._where(reader).migrator}/links"
        found = await self._call("POST", url, {"peer": peer}, key, _Links, LINKS_BYTES)
        try:
            return found.links[peer]
        except KeyError:
            raise NotAnswered(f"{url}: this migrator cannot be told to meet a peer") from None

    async def _call(
        self, method: str, url: str, query: dict[str, str], key: bytes, wanted: type[T], most: int
    ) -> T:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(CALL_SECONDS, sock_connect=CONNECT_SECONDS),
                connector=aiohttp.TCPConnector(force_close=True),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,  # What is packed may be a thousand times as long.
            )
        headers = {"Authorization": bearer(key)}
        try:
            async with self._session.request(
                method, url, params=query, headers=headers, allow_redirects=False
            ) as response:
                if response.status == 401:
                    raise WrongKey(f"{url}: it has another key")
                if response.status != 200:
                    raise NotAnswered(f"{url}: HTTP {response.status}")
                return msgspec.json.decode(await _body(response, url, most), type=wanted)
        except TimeoutError:
            raise NotAnswered(f"{url}: no answer in time") from None
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError) as error:
            raise NotAnswered(f"{url}: {error or type(error).__name__}") from error
        except msgspec.MsgspecError as error:
            raise NotAnswered(f"{url}: an answer of another version: {error}") from error


async def _body(response: aiohttp.ClientResponse, url: str, most: int) -> bytes:
    found = bytearray()
    async for part in response.content.iter_any():
        found += part
        if len(found) > most:
            raise NotAnswered(f"{url}: an answer of more than {most} bytes")
    return bytes(found)
