"""Keeps the certificate that the operator makes for its webhook, where cert-manager does not.

    leader --> certificates --> Secret --> every replica --> Identity
                    +--> caBundle of the one ValidatingWebhookConfiguration

The chart makes both objects, empty: the operator needs no right to create or delete any.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from distserve.operator.certificates import Kept, Term, read_secret, renewed, write_secret
from distserve.operator.cluster import MANAGER, Cluster
from distserve.operator.kinds import SECRETS, WEBHOOKS
from distserve.operator.model import Object
from distserve.operator.settings import SelfMadeCertificate
from distserve.operator.tls import CertificateUnusable, Identity

log = logging.getLogger(__name__)

CURE = "helm upgrade with webhook.enabled=true makes it"


class SelfMade:
    def __init__(
        self,
        settings: SelfMadeCertificate,
        identity: Identity,
        cluster: Cluster,
        leads: Callable[[], bool],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._cluster = cluster
        self._leads = leads
        self._clock = clock
        self._term = Term(
            timedelta(seconds=settings.life_seconds), timedelta(seconds=settings.settle_seconds)
        )

    async def look(self) -> None:
        """Once: shows what is kept; the leader keeps it fresh. Raises ClusterError, LeaseLost,
        CertificateUnusable."""
        said = self._settings
        secret = await self._cluster.get(SECRETS, said.namespace, said.secret)
        if secret is None:
            raise CertificateUnusable(f"there is no Secret {said.namespace}/{said.secret}: {CURE}")
        kept = read_secret(secret.get("data") or {})
        if self._leads():
            kept = await self._keep(secret, kept)
        if kept is None:
            raise CertificateUnusable("no certificate yet: the leader makes one")
        if self._identity.use(kept.serving.certificate, kept.serving.key):
            log.info("the webhook shows the certificate of Secret %s", said.secret)

    async def _keep(self, secret: Object, kept: Kept | None) -> Kept:
        said = self._settings
        live = await self._cluster.get(WEBHOOKS, "", said.configuration)
        if live is None:
            raise CertificateUnusable(
                f"there is no ValidatingWebhookConfiguration {said.configuration}: {CURE}"
            )
        announced = _announced(live)
        wanted = renewed(kept, announced, said.names, self._clock(), self._term)
        if wanted != kept:
            # With its version: two that believe they lead do not write past each other.
            path = SECRETS.path(said.namespace, said.secret)
            await self._cluster.write("update", path, {**secret, "data": write_secret(wanted)})
            log.info("wrote the webhook's certificates to Secret %s", said.secret)
        if announced != wanted.bundle:
            await self._announce(live, wanted.bundle)
        return wanted

    async def _announce(self, live: Object, bundle: str) -> None:
        """Owns the one field: everything else stays the chart's."""
        encoded = b64encode(bundle.encode()).decode()
        metadata = live["metadata"]
        wanted = {
            "apiVersion": WEBHOOKS.api_version,
            "kind": WEBHOOKS.kind,
            "metadata": {"name": metadata["name"], "uid": metadata["uid"]},
            "webhooks": [
                {"name": one["name"], "clientConfig": {"caBundle": encoded}}
                for one in live["webhooks"]
            ],
        }
        await self._cluster.write(
            "apply",
            WEBHOOKS.path("", metadata["name"]),
            wanted,
            query={"fieldManager": MANAGER, "force": "true"},
            content_type="application/apply-patch+yaml",
        )
        log.info("announced the webhook's authorities in %s", metadata["name"])


def _announced(live: Object) -> str:
    """What all webhooks of the configuration trust; empty when they do not agree."""
    found = {one["clientConfig"].get("caBundle", "") for one in live.get("webhooks") or ()}
    return b64decode(found.pop()).decode(errors="replace") if len(found) == 1 else ""
