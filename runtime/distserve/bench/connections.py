"""Connections that are there before they are needed, so that their making is not measured.

Called by `openloop` for each request, and by whoever runs a client in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource

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


class Spare:
    """One connection more than are in use, begun ahead of the request that will need it.

    The pool hands out its oldest first, so what is used in the end may be another; with this one
    there are enough, unless the server closes one meanwhile.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._making = asyncio.create_task(_connect(http, url))

    async def ready(self) -> None:
        """It is there to be used, or cannot be had: then the request that needs it says why. As
        long as that takes; whoever waits has a limit."""
        if not self._making.done():
            await asyncio.wait({self._making})
        self._release()

    def drop(self) -> None:
        """Whether it was used or not: it is not held any more, nor made."""
        if not self._making.cancel():
            self._release()

    def _release(self) -> None:
        if self._making.cancelled():  # with the whole program
            return
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
            self._making.result().release()


async def _connect(http: aiohttp.ClientSession, url: str) -> Connection:
    if http.connector is None:
        raise aiohttp.ClientConnectionError("the session is closed")
    request = aiohttp.ClientRequest("GET", URL(url), session=http)
    return await http.connector.connect(request, [], http.timeout)
