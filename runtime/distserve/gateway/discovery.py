"""Where the engines are: an interface, and the file that a runner keeps (docs/processes.md).
In a cluster it is slice_discovery.py."""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
_FORMS = "write file:PATH, or in a cluster endpointslices:NAMESPACE/SERVICE[,GATEWAYS]"
_DNS_LABEL = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"


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
    heard_at: float
    """When its source last gave a sign of life, by the event loop's clock."""
    gateways: int
    """How many serve this deployment, this one among them; 1 while no others are known."""

    def watch(self) -> AsyncIterator[list[Endpoint]]:
        """All endpoints, once at the start and again after each change."""
        ...


class FileDiscovery:
    """Polls the file's identity, so that it works on every file system and for ConfigMap mounts.
    While the file is missing or broken, what was last read stays in force."""

    heard_at = 0.0
    gateways = 1

    def __init__(self, path: Path, poll_seconds: float = POLL_SECONDS) -> None:
        self._path = path
        self._poll_seconds = poll_seconds

    async def watch(self) -> AsyncIterator[list[Endpoint]]:
        seen: object = ()
        while True:
            if (identity := self._identity()) is not None:
                self.heard_at = asyncio.get_running_loop().time()
            if identity != seen:
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


def make_discovery(location: str, environment: Mapping[str, str] = os.environ) -> Discovery:
    """`file:PATH`, or `endpointslices:NAMESPACE/SERVICE`; the gateways' own Service may follow
    behind a comma. Raises ValueError."""
    kind, _, rest = location.partition(":")
    if kind == "file" and rest:
        return FileDiscovery(Path(rest))
    found = re.fullmatch(f"({_DNS_LABEL})/({_DNS_LABEL})(?:,({_DNS_LABEL}))?", rest)
    if kind == "endpointslices" and found:
        # It imports this module, and HTTP, which a file does not need.
        from distserve.gateway.api_server import api_server_of_pod
        from distserve.gateway.slice_discovery import SliceDiscovery

        namespace, service, gateways = found.groups("")
        return SliceDiscovery(api_server_of_pod(environment), namespace, service, gateways)
    raise ValueError(f"discovery {location!r} is not known: {_FORMS}")
