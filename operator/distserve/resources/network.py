"""NetworkPolicies: engines are reached by gateways, the operator and one another only."""

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.resources import naming, processes
from distserve.resources.objects import Object, new_object


def network_objects(deployment: DistServeDeployment) -> list[Object]:
    if not deployment.spec.network_policy.enabled:
        return []
    return [_engines(deployment), _gateway(deployment)]


def _engines(deployment: DistServeDeployment) -> Object:
    """Scrapers come from namespaces that carry the label distserve.io/scrape=true; the Dialect on
    the same port asks for the deployment's key."""
    gateways = _pods(naming.component_selector(deployment, labels.COMPONENT_GATEWAY))
    engines = _pods(naming.component_selector(deployment, labels.COMPONENT_ENGINE))
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {labels.APP_NAME: labels.OPERATOR_NAME}},
    }
    scrapers = {"namespaceSelector": {"matchLabels": {labels.SCRAPE: "true"}}}
    return _policy(
        deployment,
        naming.engine_name(deployment),
        labels.COMPONENT_ENGINE,
        [
            _allow([gateways, operator, scrapers], processes.ENGINE_PORT),
            _allow([engines], processes.MIGRATOR_PORT),
            _allow([operator, scrapers], processes.MIGRATOR_METRICS_PORT),
        ],
    )


def _gateway(deployment: DistServeDeployment) -> Object:
    """Clients may come from anywhere, to this one port."""
    anybody = {"ports": [{"protocol": "TCP", "port": processes.GATEWAY_PORT}]}
    name = naming.gateway_name(deployment)
    return _policy(deployment, name, labels.COMPONENT_GATEWAY, [anybody])


def _policy(
    deployment: DistServeDeployment, name: str, component: str, ingress: list[Object]
) -> Object:
    found = new_object(deployment, "networking.k8s.io/v1", "NetworkPolicy", name)
    return found | {
        "spec": {
            "podSelector": {"matchLabels": naming.component_selector(deployment, component)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        }
    }


def _pods(selector: dict[str, str]) -> Object:
    return {"podSelector": {"matchLabels": selector}}


def _allow(peers: list[Object], port: int) -> Object:
    return {"from": peers, "ports": [{"protocol": "TCP", "port": port}]}
