"""Connections that are there before they are needed, so that their making is not measured.

Called by `openloop` for each request, and by whoever runs a client in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
from collections.abc import AsyncIterator

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

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
async def held(http: aiohttp.ClientSession, url: str, seconds: float) -> AsyncIterator[None]:
    """Within, one connection more to `url` than are in use; on leaving it is there to be used.

    Where none is had in `seconds`, or at all, nothing is held: the request that needs it will
    make its own, or say why it cannot.
    """
    connection = None
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(seconds):
            connection = await _connect(http, url)
    try:
        yield
    finally:
        if connection is not None:
            connection.release()


async def _connect(http: aiohttp.ClientSession, url: str) -> Connection | None:
    if http.connector is None:  # the session is closed
        return None
    request = aiohttp.ClientRequest("GET", URL(url), session=http)
    return await http.connector.connect(request, [], http.timeout)
