"""Discovery in a cluster: lists and watches the EndpointSlices of the instances' Service, and those
of the gateways' own, by which each knows how many share the bound on what may wait.

      list -> watch -> watch -> ... -> list            each watch goes on where the last one ended
        ^       |
        +-------+ error, no end in time, history lost (410), or a relist is due

What was found last stays in force while the API server does not answer. Whether an instance is
alive is not asked here: each one's own state stream tells (watch.py).
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field

import aiohttp
import msgspec
from msgspec import Struct

from distserve.gateway.api_server import CONNECT_SECONDS, MAX_ERROR_BYTES, ApiServer
from distserve.gateway.client import NONSENSE, json_lines
from distserve.gateway.discovery import Endpoint
from distserve.gateway.slices import (
    SERVICE_LABEL,
    EndpointSlice,
    Metadata,
    count_serving,
    instances,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often and how patiently, in seconds."""

    list_seconds: float = 20.0
    """Bound on a list."""
    watch_seconds: float = 120.0
    """The server is asked to end a watch after this, so that its silence never means nothing:
    bookmarks come each minute or two, but are promised to nobody."""
    late_seconds: float = 15.0
    """A watch that has not ended by then is dead."""
    relist_seconds: float = 900.0
    """So that what was missed, for whatever reason, is missed no longer than this."""
    quick_seconds: float = 1.0
    """A watch that ends sooner without a word counts as a failure."""
    first_pause_seconds: float = 0.25
    max_pause_seconds: float = 30.0


class ApiError(Exception):
    """The API server refused, or said what cannot be."""


class _Status(Struct, frozen=True):
    code: int = 0
    message: str = ""


class _List(Struct, frozen=True):
    metadata: Metadata
    items: list[EndpointSlice] | None = None


class _Event(Struct, frozen=True):
    type: str
    object: msgspec.Raw


_LIST = msgspec.json.Decoder(_List)
_EVENT = msgspec.json.Decoder(_Event)
_SLICE = msgspec.json.Decoder(EndpointSlice)
_STATUS = msgspec.json.Decoder(_Status)

FAILURES = (ApiError, aiohttp.ClientError, TimeoutError, OSError, ValueError, *NONSENSE)
"""ValueError: of a token that can be no header."""

Slices = dict[str, EndpointSlice]


@dataclass
class SliceDiscovery:
    api: ApiServer
    namespace: str
    service: str
    """Of the instances."""
    gateway_service: str = ""
    """Of the gateways; without a name this one is taken to be alone."""
    pace: Pace = Pace()
    draw: random.Random = field(default_factory=random.Random)
    heard_at: float = 0.0
    """When the server last said something, by the event loop's clock; a watch's end counts."""
    gateways: int = 1
    """That serve, as last heard; at least this one."""
    _failures: int = 0

    async def watch(self) -> AsyncIterator[list[Endpoint]]:
        known: list[Endpoint] | None = None
        while True:
            try:
                async with (
                    self.api.session() as session,
                    contextlib.aclosing(self._until_relist(session)) as changes,
                ):
                    async for slices in changes:
                        self._count_gateways(slices)
                        found = instances(s for s in slices.values() if s.service == self.service)
                        if found != known:
                            known = found
                            yield found
            except FAILURES as error:
                # A watch may break, and history be lost, while nothing is wrong.
                level = logging.WARNING if self._failures else logging.INFO
                pause = self._pause_seconds()
                log.log(
                    level,
                    "endpoint slices of %s/%s cannot be followed: %s; %d known instances stay, "
                    "next attempt in %.1f s",
                    self.namespace, self.service, str(error) or repr(error), len(known or ()),
                    pause,
                )  # fmt: skip
                await asyncio.sleep(pause)

    def _count_gateways(self, slices: Slices) -> None:
        if self.gateway_service:
            theirs = (one for one in slices.values() if one.service == self.gateway_service)
            self.gateways = max(1, count_serving(theirs))

    async def _until_relist(self, session: aiohttp.ClientSession) -> AsyncGenerator[Slices, None]:
        """All slices, after the list and after each event."""
        now = asyncio.get_running_loop().time
        relist_at = now() + self.pace.relist_seconds * self.draw.uniform(0.75, 1.25)
        listed = await self._list(session)
        self.heard_at = now()
        slices = {one.metadata.name: one for one in listed.items or ()}
        version = listed.metadata.resource_version
        yield slices
        while now() < relist_at:
            began, heard = now(), False
            async with contextlib.aclosing(self._watch(session, version)) as events:
                async for event in events:
                    version = _apply(event, slices)
                    heard, self.heard_at = True, now()
                    self._worked()
                    yield slices
            if not heard and now() - began < self.pace.quick_seconds:
                raise ApiError("the API server ends watches at once")
            self.heard_at = now()
            self._worked()

    def _worked(self) -> None:
        """A list alone is no success: a watch that always fails would be tried without a pause."""
        if self._failures:
            log.info("endpoint slices of %s/%s are followed again", self.namespace, self.service)
        self._failures = 0

    def _pause_seconds(self) -> float:
        """Doubles, with jitter: all gateways of a cluster lose the same API server at once."""
        longest = self.pace.first_pause_seconds * 2.0 ** min(self._failures, 16)
        self._failures += 1
        return min(longest, self.pace.max_pause_seconds) * self.draw.uniform(0.5, 1.0)

    # ---- calls ----------------------------------------------------------------------------------

    async def _list(self, session: aiohttp.ClientSession) -> _List:
        timeout = aiohttp.ClientTimeout(self.pace.list_seconds, sock_connect=CONNECT_SECONDS)
        async with self._get(session, {}, timeout) as answer:
            await _raise_for_status(answer)
            return _LIST.decode(await answer.read())

    async def _watch(
        self, session: aiohttp.ClientSession, version: str
    ) -> AsyncGenerator[_Event, None]:
        """Events after this version, until the server ends the watch. A line that was cut off is
        nothing lost: the next watch begins after the last whole one."""
        asked = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": f"{self.pace.watch_seconds:.0f}",
        }
        timeout = aiohttp.ClientTimeout(
            self.pace.watch_seconds + self.pace.late_seconds, sock_connect=CONNECT_SECONDS
        )
        async with self._get(session, asked, timeout) as answer:
            await _raise_for_status(answer)
            async for event in json_lines(answer, _EVENT):
                yield event

    @property
    def _selector(self) -> str:
        names = ",".join(name for name in (self.service, self.gateway_service) if name)
        return f"{SERVICE_LABEL} in ({names})"

    def _get(
        self,
        session: aiohttp.ClientSession,
        asked: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return session.get(
            f"{self.api.url}/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices",
            params={"labelSelector": self._selector, **asked},
            headers=self.api.headers(),
            timeout=timeout,
            allow_redirects=False,
        )


def _apply(event: _Event, slices: Slices) -> str:
    """Brings the slices up to date and returns the version that they have now."""
    if event.type == "ERROR":
        status = _STATUS.decode(event.object)
        raise _error(status.code, status.message)
    found = _SLICE.decode(event.object)
    match event.type:
        case "ADDED" | "MODIFIED":
            slices[found.metadata.name] = found
        case "DELETED":
            slices.pop(found.metadata.name, None)
        case "BOOKMARK":
            pass
        case _:
            raise ApiError(f"the API server sent an event of type {event.type!r}")
    return found.metadata.resource_version


async def _raise_for_status(answer: aiohttp.ClientResponse) -> None:
    if answer.status != 200:
        body = await answer.content.read(MAX_ERROR_BYTES)
        try:
            message = _STATUS.decode(body).message
        except NONSENSE:
            message = body[:200].decode(errors="replace")
        raise _error(answer.status, message)


def _error(code: int, message: str) -> ApiError:
    cure = {
        401: "; is automountServiceAccountToken true, and the service account still there?",
        403: "; bind the gateway's service account to the ClusterRole distserve-gateway",
    }.get(code, "")
    return ApiError(f"{code}: {message}{cure}")
