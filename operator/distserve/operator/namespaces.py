"""Which of the namespaces that it is to keep the operator may look into.

Its rights are a Role in each of them, and a namespace that is deleted takes its Role along. The
process asks when it starts, so that the others are kept all the same; `resync` asks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from distserve.operator.cluster import Cluster
from distserve.operator.errors import ClusterError, Refused
from distserve.operator.kinds import DEPLOYMENTS

log = logging.getLogger(__name__)


async def kept_namespaces(cluster: Cluster, named: Sequence[str]) -> tuple[str, ...]:
    """Those that it may look into; a warning names the others. All of them where that would be
    none: then the fault is not of a namespace, and what lists them next tells of it."""

    async def may(namespace: str) -> bool:
        try:
            return await may_look_into(cluster, namespace)
        except ClusterError:
            return True  # Nobody knows: what lists it next waits for an answer.

    answers = await asyncio.gather(*map(may, named))
    kept = tuple(one for one, yes in zip(named, answers, strict=True) if yes)
    if not kept:
        return tuple(named)
    for namespace in sorted({*named} - {*kept}):
        log.warning(
            "namespace %s is left out: its deployments may not be listed. Make the namespace and "
            "its Role (helm upgrade does the latter), or take it out of the chart's `namespaces`",
            namespace,
        )
    return kept


async def may_look_into(cluster: Cluster, namespace: str) -> bool:
    """Raises ClusterError where the API server does not say."""
    try:
        await cluster.call("list", DEPLOYMENTS.path(namespace), query={"limit": "1"})
    except Refused:
        return False
    return True
