"""What a unit's pods request together: what queues count of it."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from distserve.api.deployment import DistServeDeployment
from distserve.placement.pods import pod_amounts
from distserve.placement.quantities import PODS
from distserve.resources import naming
from distserve.resources.instances import stateful_set
from distserve.resources.revisions import Revision


class Asked(NamedTuple):
    """What a unit asks its queue for."""

    pods: int
    amounts: Mapping[str, int]
    """By resource, as placement counts."""

    @property
    def digest(self) -> str:
        return digest_of([self.pods, self.amounts])


def asked_of(deployment: DistServeDeployment, unit: str, revision: Revision) -> Asked:
    """Without devices that are claimed: the queues of Volcano do not count those."""
    pods, total = 0, Counter[str]()
    for instance in naming.instances(deployment, unit, revision.unit):
        found = stateful_set(deployment, instance, revision)["spec"]
        pods += found["replicas"]
        for name, count in pod_amounts(found["template"]["spec"]).items():
            if name != PODS:
                total[name] += count * found["replicas"]
    return Asked(pods, dict(total))


def digest_of(found: object) -> str:
    return hashlib.sha256(msgspec.json.encode(found, order="sorted")).hexdigest()[:16]
