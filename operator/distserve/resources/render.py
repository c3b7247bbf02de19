"""A deployment as Kubernetes objects: what the operator applies, `render` prints and `up` runs."""

from distserve.api.deployment import DistServeDeployment
from distserve.resources.access import access_objects
from distserve.resources.gateways import gateway_objects
from distserve.resources.instances import instance_objects
from distserve.resources.network import network_objects
from distserve.resources.objects import Object
from distserve.resources.settings import RenderSettings


def render(deployment: DistServeDeployment, settings: RenderSettings) -> list[Object]:
    """All objects, in the order in which they are applied. Raises RenderError."""
    return [
        *access_objects(deployment, settings),
        *network_objects(deployment),
        *instance_objects(deployment, settings),
        *gateway_objects(deployment, settings),
    ]
