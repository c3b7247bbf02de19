"""Where the engines are: an interface, and the file that a runner keeps (docs/processes.md)."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25


class Endpoint(Struct, frozen=True, kw_only=True):
    """An instance as discovery knows it."""

    name: str
    url: str
    role: str = ""
    unit: str = ""
    revision: str = ""
    domain: str = ""
    """Empty ones are asked of the instance itself."""
    ready: bool = True
    terminating: bool = False


class Endpoints(Struct, frozen=True):
    """The discovery file."""

    endpoints: list[Endpoint]


class Discovery(Protocol):
    def watch(self) -> AsyncIterator[list[Endpoint]]:
        """All endpoints, once at the start and again after each change."""
        ...


class FileDiscovery:
    """Polls the file's identity, so that it works on every file system and for ConfigMap mounts.
    While the file is missing or broken, what was last read stays in force."""

    def __init__(self, path: Path, poll_seconds: float = POLL_SECONDS) -> None:
        self._path = path
        self._poll_seconds = poll_seconds

    async def watch(self) -> AsyncIterator[list[Endpoint]]:
        seen: object = ()
        while True:
            if (identity := self._identity()) != seen:
                seen = identity
                if (endpoints := self._read()) is not None:
                    yield endpoints
            await asyncio.sleep(self._poll_seconds)

    def _identity(self) -> object:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _read(self) -> list[Endpoint] | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Endpoints).endpoints
        except OSError as error:
            log.warning("discovery file cannot be read: %s", error)
        except msgspec.MsgspecError as error:
            log.warning("discovery file %s is broken, kept what was known: %s", self._path, error)
        return None


def make_discovery(location: str) -> Discovery:
    """`file:PATH`. Raises ValueError."""
    kind, _, rest = location.partition(":")
    if kind != "file" or not rest:
        raise ValueError(f"discovery {location!r} is not known: write file:PATH")
    return FileDiscovery(Path(rest))
