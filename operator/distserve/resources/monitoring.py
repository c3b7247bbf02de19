"""For the Prometheus operator, where the cluster serves its kinds: what to scrape, what to alert.

What the rules say is `distserve.observability`'s.
"""

from typing import Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.observability.deployment_rules import Service, deployment_rules
from distserve.observability.rules import RUNBOOKS, rule_groups
from distserve.observability.selecting import METRICS_PORTS, TARGET_LABELS
from distserve.resources import naming
from distserve.resources.objects import Object, new_object
from distserve.resources.settings import RenderSettings

API_VERSION: Final = "monitoring.coreos.com/v1"
POD_MONITOR: Final = "PodMonitor"
PROMETHEUS_RULE: Final = "PrometheusRule"
LIMITS: Final = {"sampleLimit": 10_000, "labelLimit": 64, "labelValueLengthLimit": 1024}
"""Of one scrape of one port. What we serve is some 350 samples, of a dozen labels with those of the
target, and names of at most 253 characters: only what is no process of ours is beyond these, and
none of it is stored then."""


def monitoring_objects(deployment: DistServeDeployment, settings: RenderSettings) -> list[Object]:
    wanted = deployment.spec.observability
    found = []
    if wanted.pod_monitor and f"{API_VERSION}/{POD_MONITOR}" in settings.served:
        found.append(_pod_monitor(deployment, settings))
    if wanted.prometheus_rule and f"{API_VERSION}/{PROMETHEUS_RULE}" in settings.served:
        found.append(_rule(deployment, settings))
    return found


def _pod_monitor(deployment: DistServeDeployment, settings: RenderSettings) -> Object:
    """A pod is scraped at those of the ports that it has."""
    found = _selected(deployment, POD_MONITOR, settings)
    return found | {
        "spec": {
            "selector": {"matchLabels": {labels.DEPLOYMENT: deployment.name}},
            "podTargetLabels": list(TARGET_LABELS),
            **LIMITS,
            "podMetricsEndpoints": [{"port": port, "path": "/metrics"} for port in METRICS_PORTS],
        }
    }


def _rule(deployment: DistServeDeployment, settings: RenderSettings) -> Object:
    found = _selected(deployment, PROMETHEUS_RULE, settings)
    return found | {"spec": rules_document(deployment, settings.runbooks)}


def _selected(deployment: DistServeDeployment, kind: str, settings: RenderSettings) -> Object:
    """With the labels by which Prometheus selects; of a name that is ours, too, our value stays."""
    ours = naming.common_labels(deployment)
    more = {name: value for name, value in settings.monitoring_labels.items() if name not in ours}
    return new_object(deployment, API_VERSION, kind, deployment.name, more)


def rules_document(deployment: DistServeDeployment, runbooks: str = RUNBOOKS) -> Object:
    """Its recording rules and alerts, as Prometheus reads them from a file too."""
    slo = deployment.spec.slo
    service = Service(
        deployment.namespace,
        deployment.name,
        # NAME-HASH-POD in a cluster, NAME-0 in `distserve up`.
        f"{naming.gateway_name(deployment)}-[0-9a-z]+(-[0-9a-z]+)?",
        None if slo is None else slo.attainment_percent,
        deployment.spec.observability.pod_monitor,
    )
    group = f"distserve.{deployment.namespace}.{deployment.name}"
    return rule_groups(group, list(deployment_rules(service)), runbooks)
