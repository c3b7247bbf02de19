"""How long pods stay on a node that gives no sign of life: in all pods, of instances and gateways.

Kubernetes then ends them, and the gateway's Deployment makes others. A StatefulSet makes none while
the old pod is ending, which it never does there: the operator ends it by force.
"""

import math
from typing import Final

from distserve.api.deployment import DistServeDeployment
from distserve.api.durations import parse_duration
from distserve.resources.objects import Object

SILENT: Final = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""Taints that the control plane puts on nodes; without tolerations of ours they are borne for five
minutes."""


def node_lost_tolerations(deployment: DistServeDeployment) -> list[Object]:
    seconds = math.ceil(parse_duration(deployment.spec.restart.node_lost_after))
    return [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
        for key in SILENT
    ]
