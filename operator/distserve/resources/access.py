"""Who may do what: service accounts, the gateway's role, the deployment's key."""

import base64

from distserve.api.deployment import DistServeDeployment
from distserve.resources import naming
from distserve.resources.objects import Object, new_object
from distserve.resources.settings import RenderSettings

RBAC = "rbac.authorization.k8s.io"


def access_objects(deployment: DistServeDeployment, settings: RenderSettings) -> list[Object]:
    return [
        _service_account(deployment, naming.engine_name(deployment)),
        _service_account(deployment, naming.gateway_name(deployment)),
        _role_binding(deployment, settings.gateway_cluster_role),
        *([key_secret(deployment, settings.key)] if settings.key else []),
    ]


def _service_account(deployment: DistServeDeployment, name: str) -> Object:
    """Pods that need its token ask for it themselves."""
    found = new_object(deployment, "v1", "ServiceAccount", name)
    return found | {"automountServiceAccountToken": False}


def _role_binding(deployment: DistServeDeployment, cluster_role: str) -> Object:
    name = naming.gateway_name(deployment)
    return new_object(deployment, f"{RBAC}/v1", "RoleBinding", name) | {
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": cluster_role},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": deployment.namespace}],
    }


def key_secret(deployment: DistServeDeployment, key: str, generation: int = 1) -> Object:
    """The key that engines, migrators and gateways know each other by; made once, never changed.

    Until it is there, the pods wait for the volume that holds it.
    """
    name = naming.key_secret_name(deployment, generation)
    found = new_object(deployment, "v1", "Secret", name)
    data = {"key": base64.b64encode(key.encode()).decode()}
    return found | {"type": "Opaque", "immutable": True, "data": data}
