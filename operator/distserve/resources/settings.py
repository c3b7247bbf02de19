"""What rendering needs besides the deployment: decided by whoever installs the operator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata

from distserve.observability.rules import RUNBOOKS


@dataclass(frozen=True)
class DefaultImages:
    """Used where `spec.images` names none."""

    engine: str
    migrator: str
    gateway: str


def released_images() -> DefaultImages:
    """The images of this version, as `make images` tags them."""
    version = metadata.version("distserve")
    return DefaultImages(
        *(f"distserve/{name}:{version}" for name in ("engine", "migrator", "gateway"))
    )


@dataclass(frozen=True)
class RenderSettings:
    images: DefaultImages
    key: str | None = None
    """The deployment's key. None: its Secret is not rendered."""
    gateway_cluster_role: str = "distserve-gateway"
    """ClusterRole that lets a gateway read EndpointSlices; the chart makes it."""
    served: frozenset[str] = frozenset()
    """Kinds that not every cluster serves and this one does: monitoring.coreos.com/v1/PodMonitor
    and monitoring.coreos.com/v1/PrometheusRule are rendered only then."""
    runbooks: str = RUNBOOKS
    """Where docs/runbooks is published: the alerts of a deployment link there."""
    monitoring_labels: Mapping[str, str] = field(default_factory=dict)
    """By which the cluster's Prometheus selects PodMonitors and PrometheusRules."""
