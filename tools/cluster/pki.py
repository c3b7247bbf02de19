"""Certificates and kubeconfigs of one cluster, as kubeadm would lay them out.

Every client has a certificate whose subject is its user and groups, so the API server's real
authorisers (Node, RBAC) are at work.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from tools.cluster.addresses import Addresses
from tools.cluster.waiting import run

VALID_DAYS = "30"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Pki:
    """The folder of one cluster's keys; names of files are `<who>.crt` and `<who>.key`."""

    folder: Path

    def crt(self, who: str) -> Path:
        return self.folder / f"{who}.crt"

    def key(self, who: str) -> Path:
        return self.folder / f"{who}.key"

    def kubeconfig(self, who: str) -> Path:
        return self.folder / f"{who}.kubeconfig"

    def make_authority(self, name: str) -> None:
        run(
            [
                *("openssl", "req", "-x509", *_KEY, "-days", VALID_DAYS, "-subj", f"/CN={name}"),
                *("-keyout", str(self.key(name)), "-out", str(self.crt(name))),
            ]
        )

    def make_certificate(
        self, who: str, subject: str, *, authority: str = "ca", names: tuple[str, ...] = ()
    ) -> None:
        """A certificate for servers and clients; `names` are DNS:... and IP:... entries."""
        request, extensions = self.folder / f"{who}.csr", self.folder / f"{who}.ext"
        extensions.write_text(
            "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n"
            "extendedKeyUsage=serverAuth,clientAuth\n"
            + (f"subjectAltName={','.join(names)}\n" if names else "")
        )
        run(
            [
                *("openssl", "req", *_KEY, "-subj", subject),
                *("-keyout", str(self.key(who)), "-out", str(request)),
            ]
        )
        run(
            [
                *("openssl", "x509", "-req", "-in", str(request), "-days", VALID_DAYS),
                *("-CA", str(self.crt(authority)), "-CAkey", str(self.key(authority))),
                *("-CAcreateserial", "-extfile", str(extensions), "-out", str(self.crt(who))),
            ]
        )

    def make_kubeconfig(self, who: str, server: str) -> None:
        """A kubeconfig that holds all it needs, so that it can be copied anywhere."""

        def content(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        cluster = {"server": server, "certificate-authority-data": content(self.crt("ca"))}
        user = {
            "client-certificate-data": content(self.crt(who)),
            "client-key-data": content(self.key(who)),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": who, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": who}}],
            "current-context": "test",
        }
        self.kubeconfig(who).write_text(json.dumps(config, indent=1))
        self.kubeconfig(who).chmod(0o600)


def make_control_plane_pki(folder: Path, addresses: Addresses, api_address: str) -> Pki:
    """Everything that control plane and administrator need."""
    folder.mkdir(mode=0o700)
    pki = Pki(folder)
    pki.make_authority("ca")
    pki.make_authority("front-proxy-ca")
    # etcd's alone: it obeys whoever has a certificate of it, and the cluster's signs users' too.
    pki.make_authority("etcd-ca")
    here = f"IP:{addresses.loopback}"
    pki.make_certificate("etcd", "/CN=etcd", authority="etcd-ca", names=(here,))
    key, public = str(pki.key("service-accounts")), str(folder / "service-accounts.pub")
    run(["openssl", "genrsa", "-out", key, "2048"])
    run(["openssl", "rsa", "-in", key, "-pubout", "-out", public])
    service = "kubernetes.default.svc"
    pki.make_certificate(
        "apiserver",
        "/CN=kube-apiserver",
        names=(
            *(f"DNS:{name}" for name in ("kubernetes", "kubernetes.default", service)),
            *(f"DNS:{name}" for name in (f"{service}.cluster.local", "localhost")),
            *(f"IP:{ip}" for ip in (api_address, addresses.loopback, addresses.api_service)),
        ),
    )
    pki.make_certificate("apiserver-kubelet-client", "/O=system:masters/CN=apiserver-kubelet")
    pki.make_certificate("front-proxy", "/CN=front-proxy", authority="front-proxy-ca")
    clients = {
        "admin": "/O=system:masters/CN=admin",
        "kube-controller-manager": "/CN=system:kube-controller-manager",
        "kube-scheduler": "/CN=system:kube-scheduler",
        "kube-proxy": "/CN=system:kube-proxy",
    }
    for who, subject in clients.items():
        pki.make_certificate(who, subject)
        pki.make_kubeconfig(who, f"https://{api_address}:6443")
    return pki


def make_node_pki(pki: Pki, node: str, address: str, api_address: str) -> None:
    """The kubelet's certificate: its identity as a client and its face as a server."""
    pki.make_certificate(
        node, f"/O=system:nodes/CN=system:node:{node}", names=(f"DNS:{node}", f"IP:{address}")
    )
    pki.make_kubeconfig(node, f"https://{api_address}:6443")
