"""What controllers of others need that run as processes beside a control plane (`lws`, `kueue`)."""

import socket

from tools.cluster.cluster import Cluster


def has_leader(cluster: Cluster, namespace: str) -> bool:
    """Whether somebody holds a Lease of this namespace."""
    leases = cluster.get("leases", namespace=namespace)["items"]
    return any(one["spec"].get("holderIdentity") for one in leases)


def listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def free_ports(count: int) -> list[int]:
    """Different ones, on loopback."""
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in found]
    for one in found:
        one.close()
    return ports
