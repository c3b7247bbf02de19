"""Connections that are there before they are needed, so that their making is not measured.

All requests that are timed are sent in an `open_session`. `openloop` makes a `Spare` for each of
them, and so does a profile; who runs a client in a process of its own also makes the table of
descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
from collections.abc import AsyncIterator
from contextvars import ContextVar

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

IDLE_SECONDS = 2.0
"""So long after its last answer a connection may be taken for another request. Shorter than servers
wait (uvicorn, vLLM: 5): one that they close as it is used loses its request, as a POST is never
repeated."""
_DESCRIPTORS = 8192
"""For this many the table is made at once: 64 KiB."""


def allow_many_connections() -> None:
    """A stream takes a file descriptor, and shells often start with 1024.

    Linux doubles the table of a process with threads at 64, 128, 256 ... descriptors, each time
    after all cores have been seen idle or switching: whoever opens the one beyond waits for some
    10 ms. The highest is therefore taken once, now: a table does not shrink.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    some = os.open(os.devnull, os.O_RDONLY)
    with contextlib.suppress(OSError):  # fewer are allowed: then it grows as it did
        os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, min(_DESCRIPTORS, most) - 1))
    os.close(some)


@contextlib.asynccontextmanager
async def open_session(timeout_seconds: float) -> AsyncIterator[aiohttp.ClientSession]:
    """For as many requests at once as are sent, of so many seconds each; straight to the server,
    whatever proxies the environment names."""
    connector = _Connector(limit=0, ttl_dns_cache=None, keepalive_timeout=IDLE_SECONDS)
    # A stream that is squeezed comes when the squeezing is done with a piece of it.
    headers = {"accept-encoding": "identity"}
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout, auto_decompress=False,
        trust_env=False,
    ) as http:  # fmt: skip
        yield http


class Spare:
    """One connection for one request, taken from the idle ones or begun ahead of its instant.

    It is handed to that request and never given back unused: the pool would take it for one that
    was just used, and a server, which counts from its last answer, would close it under another.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._making = asyncio.create_task(_connect(http, url))
        self._taken = False

    async def ready(self) -> None:
        """It is there for the next request of this task, or cannot be had: then that request makes
        its own, or says why not. As long as that takes; whoever waits has a limit."""
        if not self._making.done():
            await asyncio.wait({self._making})
        _SPARE.set(self)

    def take(self) -> Connection | None:
        """It is the caller's from now on. None the second time, where it could not be had, and
        where the server has closed it meanwhile."""
        if self._taken or self._making.cancelled():  # cancelled: with the whole program
            return None
        self._taken = True
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
            connection = self._making.result()
            if not connection.closed:
                return connection
            connection.close()
        return None

    def drop(self) -> None:
        """Whether it was used or not: it is not held any more, nor made."""
        if not self._making.cancel() and (unused := self.take()) is not None:
            unused.close()


_SPARE: ContextVar[Spare | None] = ContextVar("spare", default=None)
"""Made for the next request of this task."""


class _Connector(aiohttp.TCPConnector):
    """Gives a request the connection that was made for it, and others the one idle for longest."""

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        spare = _SPARE.get()
        made = None if spare is None else spare.take()
        return made or await super().connect(req, traces, timeout)


async def _connect(http: aiohttp.ClientSession, url: str) -> Connection:
    if http.connector is None:
        raise aiohttp.ClientConnectionError("the session is closed")
    if not isinstance(http.connector, _Connector):
        raise TypeError("no connection can be made ahead in this session; take `open_session`")
    _SPARE.set(None)  # one of before that was never used is no answer to this
    request = aiohttp.ClientRequest("GET", URL(url), session=http)
    return await http.connector.connect(request, [], http.timeout)
