"""What is told to users as Kubernetes events: each thing once, never at the cost of the work."""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from distserve.api.labels import API_VERSION, GROUP, KIND
from distserve.operator.cluster import Cluster
from distserve.operator.errors import ClusterError
from distserve.operator.kinds import EVENTS
from distserve.operator.model import Event, Object

log = logging.getLogger(__name__)

CONTROLLER = f"{GROUP}/operator"
SILENT_SECONDS = 600.0
"""The same words, or the same event in other words, are not said of an object again for so long."""
REMEMBERED = 10_000
NOTE_CHARACTERS = 1024
"""The API server takes no longer note."""


class Events:
    def __init__(
        self, cluster: Cluster, identity: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._identity = identity
        self._clock = clock
        self._told: OrderedDict[tuple[str, Event], float] = OrderedDict()

    async def tell(self, about: Object, event: Event) -> None:
        """Raises nothing of the API server's: an event that is lost is in the log."""
        metadata = about["metadata"]
        told = replace(event, message="") if event.of else event
        sign, now = (metadata["uid"], told), self._clock()
        if now - self._told.get(sign, -SILENT_SECONDS) < SILENT_SECONDS:
            return
        self._told[sign] = now
        self._told.move_to_end(sign)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        extra = {"deployment": f"{metadata['namespace']}/{metadata['name']}"}
        log.info("%s: %s", event.reason, event.message, extra=extra)
        document = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {
                "name": f"{metadata['name']}.{secrets.token_hex(8)}",
                "namespace": metadata["namespace"],
            },
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": CONTROLLER,
            "reportingInstance": self._identity[:128],
            "action": "Reconcile",
            "type": event.type,
            "reason": event.reason,
            "note": event.message[:NOTE_CHARACTERS],
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
        }
        try:
            await self._cluster.write("create", EVENTS.path(metadata["namespace"]), document)
        except ClusterError as error:
            log.warning("an event was not written: %s", error, extra=extra)
