"""The operator as a process: watches in every replica, writes in the one that holds the lease.

watches --> store --> queue --> workers --> cluster        until SIGTERM, or until any part
   ^          ^          ^        (leading)                of it ends: with its error, and
   +-- resync-+          +-- placing, planning             the restart begins with a listing
              +--> webhook, where it is asked for (every replica)
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any

from kubernetes.aio.client import Configuration

from distserve.operator.apart import apart
from distserve.operator.asking import Asking
from distserve.operator.cluster import Cluster, CountCall, load_configuration
from distserve.operator.engines import Engines
from distserve.operator.events import Events
from distserve.operator.fabric_metrics import FabricCollector
from distserve.operator.idleness import Idleness
from distserve.operator.kinds import DEVICES, NODES, PODS, Kind
from distserve.operator.lease import Lease
from distserve.operator.metrics import Metrics
from distserve.operator.model import Key, Object
from distserve.operator.namespaces import kept_namespaces
from distserve.operator.placing import Placing, Stated
from distserve.operator.planning import Planning
from distserve.operator.probes import serve_metrics, serve_probes
from distserve.operator.reconciler import Decide, Reconciler
from distserve.operator.resync import Resync
from distserve.operator.settings import CallSettings, Settings
from distserve.operator.store import Store
from distserve.operator.waits import Waits
from distserve.operator.watching import Watches
from distserve.operator.webhook import Webhook, admit
from distserve.operator.worker import Worker
from distserve.operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

NEW_OBJECTS = 5_000
"""Between two looks of Python's collector for cycles. kopf makes hundreds for each event, nearly
all of which end by themselves: with Python's own 700 up to a third of an event's time went there.
"""

Judge = Callable[[Object, Store], str]
"""From an AdmissionReview's request to why it is refused, empty when it is not."""


async def run(
    settings: Settings,
    decide: Decide,
    stated: Stated,
    stop: asyncio.Event,
    client: Callable[[Configuration, CallSettings, CountCall], Cluster] = Cluster,
    judge: Judge | None = None,
) -> None:
    """Returns after `stop`. Raises what else ended it: LeaseLost, WatchDead, PortTaken...

    `judge` goes with settings.webhook.
    """
    assert judge is not None or settings.webhook is None, "a webhook needs a judge"
    gc.freeze()  # What was imported stays: there is nothing in it to look for.
    gc.set_threshold(NEW_OBJECTS, 5, 5)
    metrics = Metrics()
    configuration = await load_configuration(settings.kubeconfig)
    cluster = client(configuration, settings.calls, metrics.count_call)
    kept = await kept_namespaces(cluster, settings.namespaces)
    left_out = [one for one in settings.namespaces if one not in kept]
    settings = replace(settings, namespaces=kept)
    operator = Operator(settings, decide, stated, cluster, metrics, left_out)
    watches = Watches(settings.watch, settings.namespaces, configuration, operator.see)
    add_gauges(metrics, operator, watches)

    async def watched() -> None:
        watches.start()
        await watches.ended

    def parts() -> Iterator[Coroutine[Any, Any, Any]]:
        yield from (stop.wait(), watched(), operator.resync.run(), operator.lead())
        if settings.webhook is not None and judge is not None:
            webhook = Webhook(operator.judged_by(judge), operator.unready, metrics.reviewed)
            leads = cluster.may_write
            yield admit(webhook, settings.webhook, settings.host, cluster, leads)

    try:
        async with (
            serve_probes(settings.host, settings.health_port, operator.trouble, operator.unready),
            serve_metrics(settings.host, settings.metrics_port, metrics.registry),
        ):
            try:
                await first_of(*parts())
            finally:
                # Whatever the end is, the other replica need not wait.
                await operator.lease.release()
    finally:
        await asyncio.to_thread(watches.stop)
        await cluster.close()


class Operator:
    """The parts, wired."""

    def __init__(
        self,
        settings: Settings,
        decide: Decide,
        stated: Stated,
        cluster: Cluster,
        metrics: Metrics,
        left_out: Sequence[str] = (),
    ) -> None:
        """`left_out`: namespaces that are to be kept besides those of `settings`, once they may."""
        self._settings = settings
        self._cluster = cluster
        self.store = Store()
        self.queue: WorkQueue[Key] = WorkQueue(settings.queue)
        self.lease = Lease(cluster, settings.lease, time.monotonic)
        cluster.may_write = lambda: self.lease.held
        self.planning = Planning(settings.plans, self._wake)
        self.placing = Placing(self.store.inventory, self._wake, time.time, stated)
        self.resync = Resync(
            cluster,
            self.store,
            settings.watch,
            settings.namespaces,
            self._wake,
            left_out=left_out,
        )
        events = Events(cluster, settings.lease.identity)
        asking = Asking()
        self.engines = Engines(asking, cluster.deployment_key, self._wake)
        self.idleness = Idleness(asking, cluster.deployment_key, self._wake)
        self.waits = Waits(metrics.unit_wait_seconds.observe)
        reconciler = Reconciler(
            self.store,
            cluster,
            decide,
            self.planning,
            self.placing,
            events,
            self.engines,
            self.idleness,
            self.waits,
        )
        self._worker = Worker(self.queue, reconciler.reconcile, metrics.reconciled)

    def see(self, kind: Kind, document: Object, gone: bool) -> None:
        """From the watches."""
        metadata = document["metadata"]
        if gone:
            name = (metadata.get("namespace", ""), metadata["name"])
            touched = self.store.drop(kind, name, metadata["uid"])
        else:
            touched = self.store.put(kind, document)
        for key in touched:
            self._wake(key)
        if kind in (PODS, NODES, *DEVICES):
            self.placing.look()

    async def lead(self) -> None:
        """Once all is seen and the lease is ours: decides and acts. Ends with LeaseLost."""
        await self.resync.ready.wait()
        await self.lease.acquire()
        self.placing.begin(self.store.keys)
        for key in self.store.keys:
            self.queue.add(key)
        workers = [self._worker.run() for _ in range(self._settings.queue.workers)]
        beside = (self.placing.run(), self.engines.run(), self.idleness.run(), self.lease.live())
        await first_of(apart(self._keep_lease, "lease"), *beside, *workers)

    async def _keep_lease(self) -> None:
        cluster = self._cluster.another()
        try:
            await self.lease.keep(cluster)
        finally:
            await cluster.close()

    def trouble(self) -> str:
        """Why the kubelet should restart the process. What it notices itself ends it anyway."""
        watch, silent = self._settings.watch, time.monotonic() - self.resync.proven
        if silent < 3 * watch.resync_seconds + watch.proof_seconds:
            return ""
        return f"for {silent:.0f} s no listing has proven that the watches show what is there"

    def unready(self) -> str:
        return "" if self.resync.ready.is_set() else "not everything has been listed yet"

    def judged_by(self, judge: Judge) -> Callable[[Object], str]:
        """Namespaces that are not kept are none of our business."""
        kept = self._settings.namespaces

        def refusal(request: Object) -> str:
            if kept and request.get("namespace") not in kept:
                return ""
            return judge(request, self.store)

        return refusal

    def _wake(self, key: Key) -> None:
        # The others' queue begins with everything when they lead.
        if self.lease.held:
            self.queue.add(key)


async def first_of(*parts: Coroutine[Any, Any, Any]) -> None:
    """Runs all; when the first of them ends the others are cancelled. Raises its error."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def add_gauges(metrics: Metrics, operator: Operator, watches: Watches) -> None:
    """What is read when it is scraped."""
    metrics.gauge("leader", "1 in the replica that writes.", lambda: operator.lease.held)
    metrics.gauge("queue_depth", "Deployments that wait for a worker.", lambda: len(operator.queue))
    metrics.gauge("deployments", "Deployments that are seen.", lambda: len(operator.store.keys))
    metrics.gauge(
        "deployments_failing",
        "Deployments whose reconciles have failed several times in a row by now.",
        lambda: operator.queue.failing,
    )
    metrics.gauge(
        "namespaces_left_out",
        "Namespaces that are to be kept and that may not be looked into.",
        lambda: len(operator.resync.left_out),
    )
    metrics.gauge(
        "proof_age_seconds",
        "Time since a listing proved that the watches show what is there.",
        lambda: time.monotonic() - operator.resync.proven,
    )
    metrics.gauges(
        "watch_age_seconds",
        "Time since the kind's watch showed something; quiet kinds are quiet for long.",
        ("kind",),
        lambda: {(kind.kind,): time.monotonic() - when for kind, when in watches.last_seen.items()},
    )
    metrics.gauges(
        "deployments_by_condition",
        "Deployments that have this condition with this status, for this reason.",
        ("condition", "status", "reason"),
        operator.store.conditions,
    )
    metrics.gauges(
        "units_waiting",
        "Units that are to be and are not whole; no series where none is.",
        ("deployment",),
        operator.waits.counts,
    )
    metrics.gauges(
        "unit_wait_longest_seconds",
        "For how long the first of these has waited by now.",
        ("deployment",),
        operator.waits.longest,
    )
    metrics.registry.register(FabricCollector(operator.engines.seen))
