"""What an instance's pod gets of the fabric when `spec` asks for it, a module for each thing.

Each `add` changes a pod that was rendered just now. The user's podTemplate is merged into it
afterwards: what users say of the same field wins.
"""

from distserve.api.deployment import DistServeDeployment
from distserve.api.strategies import Role
from distserve.resources.fabric import claims, compute_domain, environment, host_sharing, rdma
from distserve.resources.objects import Object
from distserve.resources.settings import RenderSettings


def add(pod: Object, deployment: DistServeDeployment, role: Role, settings: RenderSettings) -> None:
    """To a pod template of an instance."""
    claims.add(pod, deployment, role)
    compute_domain.add(pod, deployment)
    rdma.add(pod, deployment)
    environment.add(pod, deployment)
    host_sharing.add(pod, deployment, role, settings)
