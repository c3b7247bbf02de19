"""The cluster's API server as a pod reaches it: address from the environment, credentials from the
service account's folder. Used by discovery alone, with one right: to read EndpointSlices."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from distserve.gateway.keepalive import kept_alive

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_SECONDS = 5.0
MAX_ERROR_BYTES = 1 << 16


class NotInCluster(ValueError):
    """No API server is known here."""


@dataclass(frozen=True)
class ApiServer:
    url: str
    credentials: Path
    """Folder with `token` and `ca.crt`. Both are replaced while the pod runs."""

    def session(self) -> aiohttp.ClientSession:
        """Trusts the cluster's certificate authority as it is now. Raises OSError."""
        context: ssl.SSLContext | bool = True
        if self.url.startswith("https:"):
            context = ssl.create_default_context(cafile=self.credentials / "ca.crt")
        connector = aiohttp.TCPConnector(ssl=context, socket_factory=kept_alive)
        return aiohttp.ClientSession(connector=connector)

    def headers(self) -> dict[str, str]:
        """With the token as it is now. Raises OSError."""
        token = (self.credentials / "token").read_text().strip()
        return {"Authorization": f"Bearer {token}", "Accept": "application/json"}


def api_server_of_pod(
    environment: Mapping[str, str], credentials: Path = SERVICE_ACCOUNT
) -> ApiServer:
    """Raises NotInCluster."""
    host = environment.get("KUBERNETES_SERVICE_HOST")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise NotInCluster(
            "this is no pod of a cluster: KUBERNETES_SERVICE_HOST is not set; write file:PATH"
        )
    for name in ("token", "ca.crt"):
        if not (credentials / name).is_file():
            raise NotInCluster(
                f"{credentials / name} is not there: give the pod a service account and set "
                "automountServiceAccountToken: true"
            )
    return ApiServer(f"https://{f'[{host}]' if ':' in host else host}:{port}", credentials)
