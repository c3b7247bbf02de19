"""etcd, API server, controller manager and scheduler of one cluster, on addresses of its own."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.cluster.home import Home
from tools.cluster.pki import Pki
from tools.cluster.processes import Process, Processes

# Three times what was seen on two busy cores.
READY_SECONDS = 100.0
# The API server listens seconds before it serves, and the longer a look takes, the longer
# `wait_for` pauses after it: with 5 s a start took 12 to 15 s instead of 8 to 10.
ANSWER_SECONDS = 1.0
# Tests create hundreds of pods at once; upstream's limits (20 to 50 a second) are made for fleets
# that share an API server.
CLIENT_LIMITS = ("--kube-api-qps=300", "--kube-api-burst=600")


@dataclass(frozen=True)
class ExtraFlags:
    """Flags put behind ours; the last of several equal ones counts."""

    api_server: tuple[str, ...] = ()
    controller_manager: tuple[str, ...] = ()
    scheduler: tuple[str, ...] = ()


@dataclass
class ControlPlane:
    """What its processes are told, and where its API is reached."""

    home: Home
    pki: Pki
    programs: Mapping[str, Path]
    api_address: str
    extra: ExtraFlags

    def start(self, processes: Processes) -> None:
        """Starts everything and returns once API server, scheduler and controllers answer."""

        def start(name: str, flags: list[str]) -> Process:
            return processes.start(name, [str(self.programs[name]), *flags])

        # The API server tries again until etcd is there.
        start("etcd", self._etcd_flags())
        api_server = start("kube-apiserver", self._api_server_flags())
        self._await_ready(api_server, f"https://{self.api_address}:6443/readyz")
        controllers = start("kube-controller-manager", self._controller_manager_flags())
        scheduler = start("kube-scheduler", self._scheduler_flags())
        for process, port in ((controllers, 10257), (scheduler, 10259)):
            loopback = self.home.addresses.loopback
            self._await_ready(process, f"https://{loopback}:{port}/healthz")

    def _await_ready(self, process: Process, url: str) -> None:
        """Waits for a 200 at the process's health address."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(self.pki.crt("admin"), self.pki.key("admin"))
        # No proxy of the environment: these addresses are this machine's.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

        def answers() -> bool:
            try:
                with opener.open(url, timeout=ANSWER_SECONDS) as response:
                    return bool(response.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        process.wait_for(f"a 200 from {url}", answers, READY_SECONDS)

    def _etcd_flags(self) -> list[str]:
        pki, loopback = self.pki, self.home.addresses.loopback
        client, peer = f"https://{loopback}:2379", f"https://{loopback}:2380"
        # Every user of the machine reaches these ports, and kubelets run what etcd holds as root.
        guard = (
            "client-cert-auth=true",
            f"trusted-ca-file={pki.crt('etcd-ca')}",
            f"cert-file={pki.crt('etcd')}",
            f"key-file={pki.key('etcd')}",
        )
        return [
            *(f"--{flag}" for flag in guard),
            *(f"--peer-{flag}" for flag in guard),
            f"--data-dir={self.home.folder / 'etcd'}",
            "--name=test",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=test={peer}",
            "--unsafe-no-fsync",  # The data dies with the cluster.
            "--log-level=warn",
        ]

    def _api_server_flags(self) -> list[str]:
        pki, addresses = self.pki, self.home.addresses
        on_loopback = self.api_address == addresses.loopback
        return [
            f"--etcd-servers=https://{addresses.loopback}:2379",
            f"--etcd-cafile={pki.crt('etcd-ca')}",
            f"--etcd-certfile={pki.crt('etcd')}",
            f"--etcd-keyfile={pki.key('etcd')}",
            f"--bind-address={self.api_address}",
            f"--advertise-address={self.api_address}",
            "--secure-port=6443",
            f"--tls-cert-file={pki.crt('apiserver')}",
            f"--tls-private-key-file={pki.key('apiserver')}",
            f"--client-ca-file={pki.crt('ca')}",
            f"--kubelet-client-certificate={pki.crt('apiserver-kubelet-client')}",
            f"--kubelet-client-key={pki.key('apiserver-kubelet-client')}",
            f"--kubelet-certificate-authority={pki.crt('ca')}",
            "--kubelet-preferred-address-types=InternalIP,Hostname",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki.folder / 'service-accounts.pub'}",
            f"--service-account-signing-key-file={pki.key('service-accounts')}",
            f"--requestheader-client-ca-file={pki.crt('front-proxy-ca')}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={pki.crt('front-proxy')}",
            f"--proxy-client-key-file={pki.key('front-proxy')}",
            # Webhooks and aggregated APIs are called at their pods: no kube-proxy serves this host.
            "--enable-aggregator-routing=true",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={addresses.services}",
            "--allow-privileged=true",
            # No Endpoints object may hold a loopback address; without nodes nobody asks for it.
            f"--endpoint-reconciler-type={'none' if on_loopback else 'lease'}",
            *self.extra.api_server,
        ]

    def _controller_manager_flags(self) -> list[str]:
        return [
            *self._client_flags("kube-controller-manager"),
            f"--root-ca-file={self.pki.crt('ca')}",
            f"--service-account-private-key-file={self.pki.key('service-accounts')}",
            "--use-service-account-credentials=true",
            f"--cluster-signing-cert-file={self.pki.crt('ca')}",
            f"--cluster-signing-key-file={self.pki.key('ca')}",
            "--allocate-node-cidrs=false",
            f"--service-cluster-ip-range={self.home.addresses.services}",
            *CLIENT_LIMITS,
            *self.extra.controller_manager,
        ]

    def _scheduler_flags(self) -> list[str]:
        return [*self._client_flags("kube-scheduler"), *CLIENT_LIMITS, *self.extra.scheduler]

    def _client_flags(self, who: str) -> list[str]:
        kubeconfig = self.pki.kubeconfig(who)
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={self.home.addresses.loopback}",
            "--leader-elect=false",
        ]
