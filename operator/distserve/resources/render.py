"""A deployment as Kubernetes objects: what the operator applies, `render` prints and `up` runs."""

from distserve.api.deployment import DistServeDeployment
from distserve.resources.access import access_objects
from distserve.resources.errors import NoPlan
from distserve.resources.gateways import gateway_objects
from distserve.resources.instances import instance_objects
from distserve.resources.network import network_objects
from distserve.resources.objects import Object
from distserve.resources.settings import RenderSettings


def render(deployment: DistServeDeployment, settings: RenderSettings) -> list[Object]:
    """All objects, in the order in which they are applied. Raises RenderError.

    The numbers are the spec's: in mode Auto `planned.with_plan` puts the plan's there before.
    """
    if deployment.spec.planning.automatic:
        raise NoPlan("planning.mode Auto: there is no plan yet to take the numbers from")
    return [
        *access_objects(deployment, settings),
        *network_objects(deployment),
        *instance_objects(deployment, settings),
        *gateway_objects(deployment, settings),
    ]
