"""Which series are meant: a deployment's on a dashboard, its gateways' in its rules.

A target's labels are those that the PodMonitor gives it: namespace, pod, and the pod's own labels
in Prometheus' spelling. Other ways of scraping must set the same ones (docs/observability.md).
"""

import re
from typing import Final

from distserve.api import labels
from distserve.observability.promql import equals, series

TARGET_LABELS: Final = (
    labels.DEPLOYMENT,
    labels.ROLE,
    labels.UNIT,
    labels.INSTANCE,
    labels.REVISION,
    labels.DOMAIN,
)
"""Of a pod, on everything that is scraped from it."""


def prometheus_name(label: str) -> str:
    """distserve.io/role -> distserve_io_role, as Prometheus does it."""
    return re.sub("[^a-zA-Z0-9_]", "_", label)


DEPLOYMENT, ROLE, UNIT, INSTANCE, REVISION, DOMAIN = map(prometheus_name, TARGET_LABELS)

SHOWN: Final = (equals("namespace", "$namespace"), equals(DEPLOYMENT, "$deployment"))
"""What the dashboards' variables choose."""


def shown(metric: str, *matchers: str) -> str:
    return series(metric, *SHOWN, *matchers)


METRICS_PORTS: Final = ("http", "engine", "metrics")
"""Names of the ports that serve /metrics: the gateway's, the engine's, and the others'."""
ATTAINED: Final = "distserve_slo_attained_total"
JUDGED: Final = "distserve_slo_judged_total"
OBJECTIVE: Final = equals("objective", "deployment")
"""What the deployment promised; requests with objectives of their own are counted apart."""
OWN_OBJECTIVE: Final = equals("objective", "own")
IN_FLIGHT: Final = "distserve_requests_in_flight"
REQUESTS: Final = "distserve_requests_total"
TARGET_SECONDS: Final = "distserve_slo_target_seconds"
TARGET_RATIO: Final = "distserve_slo_target_ratio"
SERVED: Final = 'code=~"200|5.."'
"""Answered, or failed by the service. What clients got wrong, gave up, or were refused for their
number (429) says nothing of whether what was taken in is served."""
FAILED: Final = 'code=~"5.."'
