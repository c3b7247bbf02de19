"""Labels of rendered objects, and the values of those that Kubernetes recommends."""

from typing import Final

GROUP: Final = "distserve.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "DistServeDeployment"
PLURAL: Final = "distservedeployments"
SINGULAR: Final = "distservedeployment"
SHORT_NAME: Final = "dsd"

DEPLOYMENT: Final = f"{GROUP}/deployment"
ROLE: Final = f"{GROUP}/role"
UNIT: Final = f"{GROUP}/unit"
UNIT_LEADER: Final = f"{GROUP}/unit-leader"
"""On the unit's first prefill or hybrid instance: one pod per unit stands behind /scale."""
INSTANCE: Final = f"{GROUP}/instance"
REVISION: Final = f"{GROUP}/revision"
DOMAIN: Final = f"{GROUP}/domain"
SCRAPE: Final = f"{GROUP}/scrape"
"""On a namespace whose pods may read the engines' metrics through the NetworkPolicy."""

APP_NAME: Final = "app.kubernetes.io/name"
APP_INSTANCE: Final = "app.kubernetes.io/instance"
APP_COMPONENT: Final = "app.kubernetes.io/component"
APP_PART_OF: Final = "app.kubernetes.io/part-of"
APP_MANAGED_BY: Final = "app.kubernetes.io/managed-by"

NAME: Final = "distserve"
OPERATOR_NAME: Final = "distserve-operator"
COMPONENT_ENGINE: Final = "engine"
COMPONENT_GATEWAY: Final = "gateway"
