"""A deployment as it is run here: the same objects, but for one gateway and its port."""

import copy

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.local.specs import Object


def with_one_gateway(deployment: DistServeDeployment) -> DistServeDeployment:
    """There is one Service address here, and so one gateway; it gets the whole waiting bound."""
    gateway = deployment.spec.gateway.model_copy(update={"replicas": 1})
    spec = deployment.spec.model_copy(update={"gateway": gateway})
    return deployment.model_copy(update={"spec": spec})


def with_gateway_port(objects: list[Object], port: int) -> list[Object]:
    """The gateway listens on the port that users asked for: what a Service's mapping does."""
    return [_remapped(o, port) if _is_gateway(o) else o for o in objects]


def _is_gateway(found: Object) -> bool:
    component = found["metadata"]["labels"].get(labels.APP_COMPONENT)
    return found["kind"] == "Deployment" and bool(component == labels.COMPONENT_GATEWAY)


def _remapped(found: Object, port: int) -> Object:
    changed = copy.deepcopy(found)
    for container in changed["spec"]["template"]["spec"]["containers"]:
        arguments = container.get("args", [])
        if "--port" in arguments:
            arguments[arguments.index("--port") + 1] = str(port)
        for declared in container.get("ports", []):
            if declared.get("name") == "http":
                declared["containerPort"] = port
    return changed
