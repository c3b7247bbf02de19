"""For the Prometheus operator, where the cluster serves its kinds: what to scrape, what to alert.

The metrics are the gateway's (`distserve.gateway.metrics`), as its clients see the service.
"""

from typing import Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.resources import naming
from distserve.resources.objects import Object, new_object
from distserve.resources.settings import RenderSettings

API_VERSION: Final = "monitoring.coreos.com/v1"
POD_MONITOR: Final = "PodMonitor"
PROMETHEUS_RULE: Final = "PrometheusRule"

ATTAINMENT: Final = "deployment:distserve_slo_attained:ratio_rate5m"
FAILED_RATIO: Final = 0.05
"""Share of requests that end in a server's error before somebody is called."""


def monitoring_objects(deployment: DistServeDeployment, settings: RenderSettings) -> list[Object]:
    wanted = deployment.spec.observability

    def served(kind: str) -> bool:
        return f"{API_VERSION}/{kind}" in settings.served

    return [
        *([_pod_monitor(deployment)] if wanted.pod_monitor and served(POD_MONITOR) else []),
        *([_rule(deployment)] if wanted.prometheus_rule and served(PROMETHEUS_RULE) else []),
    ]


def _pod_monitor(deployment: DistServeDeployment) -> Object:
    """A pod is scraped at those of the ports that it has."""
    found = new_object(deployment, API_VERSION, POD_MONITOR, deployment.name)
    return found | {
        "spec": {
            "selector": {"matchLabels": {labels.DEPLOYMENT: deployment.name}},
            "podTargetLabels": [labels.DEPLOYMENT, labels.ROLE, labels.UNIT],
            "podMetricsEndpoints": [
                {"port": port, "path": "/metrics"} for port in ("http", "engine", "metrics")
            ],
        }
    }


def _rule(deployment: DistServeDeployment) -> Object:
    found = new_object(deployment, API_VERSION, PROMETHEUS_RULE, deployment.name)
    rules = [_failing(deployment)]
    if deployment.spec.slo is not None:
        rules = [_attainment(deployment), _missed(deployment), *rules]
    group = {"name": f"distserve.{deployment.namespace}.{deployment.name}", "rules": rules}
    return found | {"spec": {"groups": [group]}}


def _series(deployment: DistServeDeployment, metric: str, *matchers: str) -> str:
    """Of the deployment's gateways, by the labels that every way of scraping pods sets."""
    pods = f"{naming.gateway_name(deployment)}-[0-9a-z]+-[0-9a-z]+"
    chosen = [f'namespace="{deployment.namespace}"', f'pod=~"{pods}"', *matchers]
    return f"{metric}{{{', '.join(chosen)}}}"


def _identity(deployment: DistServeDeployment) -> dict[str, str]:
    return {"namespace": deployment.namespace, "deployment": deployment.name}


def _attainment(deployment: DistServeDeployment) -> Object:
    """Share of the answered requests that met TTFT, TPOT, both. Not a number while none came."""
    attained = _series(deployment, "distserve_slo_attained_total")
    answered = _series(deployment, "distserve_requests_total", 'code="200"')
    return {
        "record": ATTAINMENT,
        "expr": f"sum by (slo) (rate({attained}[5m]))"
        f" / on () group_left () sum(rate({answered}[5m]))",
        "labels": _identity(deployment),
    }


def _missed(deployment: DistServeDeployment) -> Object:
    identity = ", ".join(f'{name}="{value}"' for name, value in _identity(deployment).items())
    target = _series(deployment, "distserve_slo_target_ratio")
    return _alert(
        deployment,
        "DistServeSloMissed",
        f'{ATTAINMENT}{{{identity}, slo="both"}} < on () group_left () max({target})',
        "10m",
        "warning",
        "Only {{ $value | humanizePercentage }} of the requests meet the SLO",
        f"See which half is missed: {ATTAINMENT} by slo. ttft: prefill is short, or requests "
        "queue; look at distserve_request_stage_seconds by stage and add units or prefill "
        "instances. tpot: decode batches are too big; add decode instances. `kubectl get dsd "
        f"{deployment.name}` says whether all units are ready, `distserve plan` what the load "
        "needs.",
    )


def _failing(deployment: DistServeDeployment) -> Object:
    failed = _series(deployment, "distserve_requests_total", 'code=~"5.."')
    every = _series(deployment, "distserve_requests_total")
    return _alert(
        deployment,
        "DistServeRequestsFailing",
        f"sum(rate({failed}[5m])) / sum(rate({every}[5m])) > {FAILED_RATIO}",
        "5m",
        "critical",
        "{{ $value | humanizePercentage }} of the requests end in an error of the server",
        f"`distserve why {deployment.name}` joins conditions, events, pods and logs. 503: no "
        "instance takes work, so look at Ready and Degraded. 502 and 504: an engine or its "
        "migrator failed or is too slow; the gateway's log names it with the request's id.",
    )


def _alert(
    deployment: DistServeDeployment,
    name: str,
    expression: str,
    lasting: str,
    severity: str,
    summary: str,
    runbook: str,
) -> Object:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": _identity(deployment) | {"severity": severity},
        "annotations": {
            "summary": f"{deployment.namespace}/{deployment.name}: {summary}",
            "runbook": runbook,
        },
    }
