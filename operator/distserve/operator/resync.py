"""Compares what the watches have shown with a listing: the proof that events still flow.

    listed, and not seen        wait for the watch; if it never comes, the watch is dead
    seen, and not listed        its end was missed: drop it
    all is there                ready (the first time), healthy

It lists metadata only, and its first run is the operator's readiness. What kinds the cluster serves
is asked more often: whoever installs Prometheus' kinds after us need not wait for it. So is asked
whether namespaces that were left out may be looked into by now.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distserve.api import labels
from distserve.operator.cluster import Cluster
from distserve.operator.errors import ClusterError
from distserve.operator.kinds import CHILDREN, OPTIONAL, OPTIONAL_CHILDREN, Kind, watched
from distserve.operator.model import Features, Key
from distserve.operator.namespaces import may_look_into
from distserve.operator.settings import WatchSettings
from distserve.operator.store import Name, Seen, Store

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
RETRY_SECONDS = 2.0
AGAIN_SECONDS = 1.0
"""Until the first further listing, each one later than the last: a process that starts amid
deletions is ready soon, and where a watch is slow to show thousands they are not listed often."""


class WatchDead(Exception):
    """A watch does not show what is there; a restart begins with a listing."""


@dataclass
class Resync:
    cluster: Cluster
    store: Store
    settings: WatchSettings
    namespaces: Sequence[str]
    wake: Callable[[Key], None]
    jitter: Callable[[], float] = random.random
    left_out: Sequence[str] = ()
    """Namespaces that are to be kept, and could not be looked into when the process started."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once everything that is there has been seen."""
    proven: float = field(default_factory=time.monotonic)
    """When the last comparison came out well, by time.monotonic."""

    async def run(self) -> None:
        """Raises WatchDead."""
        while True:
            try:
                await self.compare()
            except ClusterError as error:
                log.warning("no comparison with a listing: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self.proven = time.monotonic()
            if not self.ready.is_set():
                log.info("everything is seen", extra={"deployments": len(self.store.keys)})
            self.ready.set()
            # Two replicas, and all deployments, not at once.
            await self._pause(self.settings.resync_seconds * (0.8 + 0.4 * self.jitter()))
            self._wake_all()

    async def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(left, self.settings.discover_seconds))
            try:
                found = await discover(self.cluster, self._kinds)
                known = [one for one in self.left_out if await may_look_into(self.cluster, one)]
            except ClusterError as error:
                log.warning("nobody knows what kinds are served: %s", error)
                continue
            if known:
                raise WatchDead(f"namespace {known[0]} may be looked into now, nothing watches it")
            if found != self.store.features:
                log.info("other kinds are served", extra={"served": sorted(found.served)})
                self.store.features = found
                self._wake_all()

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        one = self.settings
        return watched(one.kueue, one.volcano, one.gang_scheduling, one.kai)

    def _wake_all(self) -> None:
        for key in self.store.keys:
            self.wake(key)

    async def compare(self) -> None:
        self.store.features = await discover(self.cluster, self._kinds)
        for kind in self._kinds:
            name = f"{kind.api_version}/{kind.kind}"
            if kind not in OPTIONAL or name in self.store.features.served:
                await self._compare(kind)

    async def _compare(self, kind: Kind) -> None:
        end = time.monotonic() + self.settings.proof_seconds
        wait = AGAIN_SECONDS
        while True:
            known = dict(self.store.seen(kind))
            listed = await self._list(kind)
            for name, seen in known.items():
                if name not in listed:
                    log.warning("missed the end of %s %s/%s", kind.kind, *name)
                    for key in self.store.drop(kind, name, seen.uid):
                        self.wake(key)
            # A listing once more: what is missing may be gone meanwhile.
            again = min(end, time.monotonic() + wait)
            wait = min(2 * wait, self.settings.proof_seconds / 3)
            while missing := self._missing(kind, listed):
                if time.monotonic() > end:
                    raise WatchDead(
                        f"the watch of {kind.plural} does not show {len(missing)} objects that "
                        f"are there, one is {missing[0][0]}/{missing[0][1]}"
                    )
                if time.monotonic() > again:
                    break
                await asyncio.sleep(POLL_SECONDS)
            else:
                return

    def _missing(self, kind: Kind, listed: dict[Name, Seen]) -> list[Name]:
        known = self.store.seen(kind)
        return [
            name
            for name, found in listed.items()
            if name not in known or known[name].version < found.version
        ]

    async def _list(self, kind: Kind) -> dict[Name, Seen]:
        selector = labels.DEPLOYMENT if kind in (*CHILDREN, *OPTIONAL_CHILDREN) else ""
        found = {}
        for namespace in self.namespaces if self.namespaces and kind.namespaced else ("",):
            async for one in self.cluster.list_metadata(
                kind, namespace, selector, self.settings.proof_chunk_size
            ):
                metadata = one["metadata"]
                name = (metadata.get("namespace", ""), metadata["name"])
                found[name] = Seen(metadata["uid"], int(metadata["resourceVersion"]))
        return found


async def discover(cluster: Cluster, kinds: Sequence[Kind]) -> Features:
    """Which of the kinds that not every cluster has it serves, and its version."""
    version = await cluster.call("get", "/version")
    groups = await cluster.call("get", "/apis")
    offered = {
        one["groupVersion"] for group in groups["groups"] for one in group.get("versions") or ()
    }
    served = set()
    resources: dict[str, set[str]] = {}
    for kind in OPTIONAL:
        if kind in kinds and kind.api_version in offered:
            if kind.api_version not in resources:
                found = await cluster.call("get", f"/apis/{kind.api_version}")
                resources[kind.api_version] = {one["kind"] for one in found["resources"]}
            if kind.kind in resources[kind.api_version]:
                served.add(f"{kind.api_version}/{kind.kind}")
    minor = "".join(filter(str.isdigit, version["minor"]))
    return Features(served=frozenset(served), kubernetes=(int(version["major"]), int(minor)))
