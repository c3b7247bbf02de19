"""Who writes: one replica holds a Lease, the others watch it and stand ready.

                 free, or silent for its duration
    waiting ------------------------------------------> holding --release--> ended (SIGTERM)
       ^  |  watch: no calls while the holder renews        |
       +--+                                                 +--no renewal in time--> LeaseLost

Times are this process's own: a renewal counts from when it was seen to change, so clocks of
different machines need not agree. The holder counts from before it asked, so it always stops
before others may begin. Every call is bounded.

It is kept on another thread than that of the loop that decides (`apart`), which may be busy for
longer than the lease lasts. So that loop gives signs of life: without them nothing is renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from distserve.operator.cluster import Cluster
from distserve.operator.errors import ClusterError, Conflict, LeaseLost, Unavailable
from distserve.operator.kinds import LEASES
from distserve.operator.model import Object
from distserve.operator.settings import LeaseSettings

log = logging.getLogger(__name__)


class Lease:
    def __init__(
        self, cluster: Cluster, settings: LeaseSettings, clock: Callable[[], float]
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._path = LEASES.path(settings.namespace, settings.name)
        self._mine: Object | None = None
        """The lease as this replica wrote it last."""
        self._until = 0.0
        self._alive = 0.0
        """When the loop that decides gave its last sign of life."""
        self._seen: tuple[Any, float] = (None, 0.0)
        """What the holder wrote last, and when that was seen first."""

    @property
    def held(self) -> bool:
        """Whether this replica may write now."""
        return self._mine is not None and self._clock() < self._until

    async def acquire(self) -> None:
        """Returns when this replica holds it."""
        while True:
            try:
                await self._take_or_wait()
            except ClusterError as error:
                log.warning("the lease cannot be read: %s", error)
                await asyncio.sleep(1.0)
            if self.held:
                self._alive = self._clock()
                log.info("leading", extra={"identity": self._settings.identity})
                return

    async def live(self) -> None:
        """Signs of life, of the loop that this runs on. Never returns."""
        while True:
            self._alive = self._clock()
            await asyncio.sleep(self._settings.renew_seconds)

    async def keep(self, cluster: Cluster) -> None:
        """Renews until it cannot: raises LeaseLost. `cluster`: of the loop that this runs on."""
        pause = self._settings.renew_seconds
        while True:
            await asyncio.sleep(max(0.0, min(pause, self._until - self._clock())))
            if self._clock() - self._alive > self._settings.busy_seconds:
                seconds = self._settings.busy_seconds
                raise LeaseLost(f"what decides has hung for {seconds:g} s: another replica is to")
            try:
                await self._renew(cluster)
                pause = self._settings.renew_seconds
            except Conflict as error:
                self._mine = None
                raise LeaseLost(f"another replica took the lease: {error}") from error
            except ClusterError as error:
                log.warning("the lease was not renewed: %s", error)
                pause = 0.5
            if not self.held:
                seconds = self._settings.renew_deadline_seconds
                raise LeaseLost(f"the lease was not renewed for {seconds:g} s")

    async def release(self) -> None:
        """Gives it back, so that another replica leads at once."""
        if not self.held or self._mine is None:
            return
        document, self._mine = self._mine, None
        try:
            try:
                await self._give_back(document)
            except Conflict:
                # The end came amid a renewal: that got through, its answer did not.
                if (found := await self._ours(self._cluster)) is None:
                    raise
                await self._give_back(found)
            log.info("gave the lease back")
        except ClusterError as error:
            log.warning("the lease was not given back, it runs out: %s", error)

    async def _give_back(self, document: Object) -> None:
        spec = {**document["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        body = {**document, "spec": spec}
        await self._cluster.call("update", self._path, body=body, seconds=2.0)

    async def _take_or_wait(self) -> None:
        found = await self._cluster.get(LEASES, self._settings.namespace, self._settings.name)
        if found is None:
            path = LEASES.path(self._settings.namespace)
            await self._write(self._cluster, "create", path, self._new())
            return
        left = self._left(found)
        if left <= 0:
            taken = {**found, "spec": self._spec(found["spec"].get("leaseTransitions") or 0)}
            await self._write(self._cluster, "update", self._path, taken)
            return
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={self._settings.name}",
            "resourceVersion": found["metadata"]["resourceVersion"],
            "timeoutSeconds": "600",
        }
        path = LEASES.path(self._settings.namespace)
        stream = self._cluster.watch_lines(path, query, 610.0)
        async with contextlib.aclosing(stream):
            while left > 0:
                try:
                    async with asyncio.timeout(left):
                        event = await anext(stream)
                except (TimeoutError, StopAsyncIteration):
                    return  # Silence is not proof: look.
                if event["type"] not in ("ADDED", "MODIFIED"):
                    return
                left = self._left(event["object"])

    def _left(self, document: Object) -> float:
        """How long others must keep off, as far as this replica can know."""
        spec = document.get("spec") or {}
        if not spec.get("holderIdentity"):
            return 0.0
        now, sign = self._clock(), (spec["holderIdentity"], spec.get("renewTime"))
        if self._seen[0] != sign:
            self._seen = (sign, now)
        duration: float = spec.get("leaseDurationSeconds") or self._settings.duration_seconds
        return self._seen[1] + duration - now

    async def _renew(self, cluster: Cluster) -> None:
        assert self._mine is not None, "only a holder renews"
        spec = {**self._mine["spec"], "renewTime": _now()}
        await self._write(cluster, "update", self._path, {**self._mine, "spec": spec})

    async def _write(self, cluster: Cluster, verb: Any, path: str, document: Object) -> None:
        asked = self._clock()
        # A second one must have time; where the API server is slow a longer one gets through.
        bound = self._settings.renew_deadline_seconds / 2
        try:
            self._mine = await cluster.call(verb, path, body=document, seconds=bound)
        except Conflict:
            if self._mine is None:
                return  # Another replica was faster.
            if (found := await self._ours(cluster)) is None:
                raise
            # The last renewal came through, only its answer did not.
            self._mine = found
            raise Unavailable("the lease is newer than the last answer told") from None
        self._until = asked + self._settings.renew_deadline_seconds

    async def _ours(self, cluster: Cluster) -> Object | None:
        found = await cluster.get(LEASES, self._settings.namespace, self._settings.name)
        holder = ((found or {}).get("spec") or {}).get("holderIdentity")
        return found if holder == self._settings.identity else None

    def _new(self) -> Object:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._settings.name, "namespace": self._settings.namespace},
            "spec": self._spec(-1),
        }

    def _spec(self, transitions: int) -> Object:
        now = _now()
        return {
            "holderIdentity": self._settings.identity,
            "leaseDurationSeconds": self._settings.duration_seconds,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions + 1,
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
