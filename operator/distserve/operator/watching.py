"""kopf as the source of events, and nothing else of it: no handler state, no finalizer, no writes.

kopf lists and watches in a thread with a loop of its own, because it ends every task of the loop
that it runs in. What it sees is handed over to the operator's loop: one call for all that came
since the last, as each call is a system call and a change of threads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from kubernetes.aio.client import Configuration

from distserve.api import labels
from distserve.operator.kinds import CHILDREN, OPTIONAL_CHILDREN, Kind, watched
from distserve.operator.model import Object
from distserve.operator.settings import WatchSettings

log = logging.getLogger(__name__)

See = Callable[[Kind, Object, bool], None]
"""(kind, object, whether it is gone)"""

AT_ONCE = 100
"""Events that are handed over before others of the loop have their turn: some 10 ms."""


class WatchingEnded(Exception):
    """kopf gave up: the API server refuses a listing, or answered none for about a minute."""


def retries_warn(record: logging.LogRecord) -> bool:
    """A filter for handlers. kopf calls a request that it tries again an error, as when a watch
    meets an API server that has just begun to serve a kind; what it gives up ends the watching."""
    if record.name.startswith("kopf.") and "will retry" in record.getMessage():
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return logging.getLogger().isEnabledFor(logging.WARNING)
    return True


class Watches:
    """All of the operator's watches. `see` is called in the loop that made this."""

    def __init__(
        self,
        settings: WatchSettings,
        namespaces: Sequence[str],
        configuration: Configuration,
        see: See,
    ) -> None:
        self._settings = settings
        self._namespaces = namespaces
        self._configuration = configuration
        self._see = see
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Ends only with WatchingEnded: without its watches the operator is blind."""
        self._kinds = watched(
            settings.kueue, settings.volcano, settings.gang_scheduling, settings.kai
        )
        self._news: deque[tuple[Kind, Object, bool]] = deque()
        self._called = False
        self.last_seen: dict[Kind, float] = dict.fromkeys(self._kinds, time.monotonic())
        """When the kind's watch showed something, by time.monotonic."""
        self._thread = threading.Thread(target=self._run, name="watches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Waits for the thread; a daemon thread that hangs does not hold up the process."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
            ended = WatchingEnded("the watches ended")
        except Exception as error:
            ended = WatchingEnded(f"the watches ended: {error or type(error).__name__}")
            ended.__cause__ = error

        def tell() -> None:
            if not self.ended.done():
                self.ended.set_exception(ended)

        if not self._stop.is_set():
            self._loop.call_soon_threadsafe(tell)

    async def _watch(self) -> None:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._log_in)
        for kind in self._kinds:
            kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(
                self._handler(kind)
            )
        where: dict[str, Any] = (
            {"namespaces": list(self._namespaces)} if self._namespaces else {"clusterwide": True}
        )
        await kopf.operator(
            registry=registry,
            settings=kopf_settings(self._settings, scanning=not self._namespaces),
            memories=_NoMemories(),
            standalone=True,
            stop_flag=self._stop,
            **where,
        )
        # Connections with TLS are closed a moment after their session.
        await asyncio.sleep(0.1)

    def _handler(self, kind: Kind) -> Any:
        async def handler(event: Any, **_: Any) -> None:
            gone = event["type"] == "DELETED"
            self._news.append((kind, event["object"], gone))
            self._call()

        handler.__name__ = kind.plural
        return handler

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        # Before the first of them is taken: what comes from now on may call again.
        self._called = False
        try:
            for _ in range(min(len(self._news), AT_ONCE)):
                kind, document, gone = self._news.popleft()
                self.last_seen[kind] = time.monotonic()
                self._see(kind, document, gone)
        finally:
            if self._news:
                self._call()

    async def _log_in(self, **_: Any) -> kopf.ConnectionInfo:
        found = self._configuration
        token = await found.get_api_key_with_prefix("BearerToken")
        scheme, _space, secret = (token or "").rpartition(" ")
        return kopf.ConnectionInfo(
            server=found.host,
            ca_path=found.ssl_ca_cert,
            insecure=not found.verify_ssl,
            scheme=scheme.capitalize() or None,
            token=secret or None,
            certificate_path=found.cert_file,
            private_key_path=found.key_file,
        )


def kopf_settings(settings: WatchSettings, *, scanning: bool) -> kopf.OperatorSettings:
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    found.peering.standalone = True
    found.scanning.disabled = not scanning
    found.watching.server_timeout = settings.server_timeout_seconds
    found.watching.client_timeout = settings.server_timeout_seconds + settings.connect_seconds
    found.watching.connect_timeout = settings.connect_seconds
    found.watching.inactivity_timeout = settings.inactivity_seconds
    found.watching.chunk_size = settings.chunk_size
    found.networking.connect_timeout = settings.connect_seconds
    found.networking.request_timeout = 60.0
    # About a minute; what lasts longer ends the process, and its restart begins with a listing.
    found.networking.error_backoffs = (0.5, 1, 2, 4, 8, 10, 10, 10, 10, 10)
    # Each object's worker keeps the object: let it end at once.
    found.queueing.idle_timeout = 0.2
    found.queueing.exit_timeout = 0.2
    found.queueing.error_delays = (1, 5, 10)
    found.persistence.diffbase_storage = _NoDiffBase()
    for kind in (*CHILDREN, *OPTIONAL_CHILDREN):
        found.watching.label_selectors[kind.group, kind.version, kind.plural] = labels.DEPLOYMENT
    return found


class _NoMemories(ResourceMemories):
    """kopf keeps about 2 KB for each object that it ever saw; nothing of that is used here."""

    async def recall(self, raw_body: Any, **options: Any) -> ResourceMemory:
        return await super().recall(raw_body, **{**options, "ephemeral": True})


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf copies each object to see what changed; handlers of raw events do not ask."""

    def build(self, *, body: Any, extra_fields: Iterable[Any] | None = None) -> Any:
        return {}

    def fetch(self, *, body: Any) -> Any:
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        """Never called: there is no handler whose state could be stored."""
