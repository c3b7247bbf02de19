"""What a cluster of Kubernetes' next release is told so that its own scheduler binds PodGroups."""

from typing import Final

from tools.cluster.control_plane import ExtraFlags

GROUP: Final = "scheduling.k8s.io"
API_VERSION: Final = f"{GROUP}/v1alpha2"
_GATES: Final = "--feature-gates=GenericWorkload=true,GangScheduling=true"
FLAGS: Final = ExtraFlags(
    api_server=(f"--runtime-config={API_VERSION}=true", _GATES),
    controller_manager=(_GATES,),
    scheduler=(_GATES,),
)
"""The controller manager keeps PodGroups while pods need them."""
