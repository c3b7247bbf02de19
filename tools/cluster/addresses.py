"""One number per cluster, its slot, from which every address and name of it follows.

So several clusters run at once without drawing a port: each has a loopback address, a bridge, a
/16 network and cgroups of its own, and all servers listen on their usual ports.

    127.(200+slot).0.1     etcd, controller manager, scheduler; the API server without real nodes
    10.(200+slot).0.1      the bridge; the API server with real nodes
    10.(200+slot).0.10+N   node N          10.(200+slot).N.0/24   its pods
    10.(200+slot).0.2      every fake node     10.(200+slot).64.0/18  their pods
    10.(200+slot).128.0/17 services, .128.1 the API server's, .128.10 the DNS server's
"""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SLOTS = 50
MAX_NODES = 9
CONTROL_PLANE_PORTS = {"etcd": 2379, "etcd peers": 2380, "kube-apiserver": 6443}


@dataclass(frozen=True)
class Addresses:
    """Every address and name of the cluster in one slot."""

    slot: int

    @property
    def loopback(self) -> str:
        return f"127.{200 + self.slot}.0.1"

    @property
    def _prefix(self) -> str:
        return f"10.{200 + self.slot}"

    @property
    def network(self) -> str:
        """All of the cluster's addresses outside loopback."""
        return f"{self._prefix}.0.0/16"

    @property
    def bridge(self) -> str:
        return f"dsk{self.slot}"

    @property
    def bridge_address(self) -> str:
        return f"{self._prefix}.0.1"

    def node_address(self, node: int) -> str:
        return f"{self._prefix}.0.{10 + node}"

    def node_link(self, node: int) -> str:
        """The bridge's end of the node's cable."""
        return f"dsk{self.slot}n{node}"

    def node_cgroup(self, node: int) -> str:
        return f"dsk{self.slot}-node{node}"

    def pods(self, node: int) -> str:
        return f"{self._prefix}.{node}.0/24"

    @property
    def all_pods(self) -> str:
        return f"{self._prefix}.0.0/17"

    @property
    def fake_pods(self) -> str:
        return f"{self._prefix}.64.0/18"

    @property
    def fake_node_address(self) -> str:
        return f"{self._prefix}.0.2"

    @property
    def services(self) -> str:
        return f"{self._prefix}.128.0/17"

    @property
    def api_service(self) -> str:
        return f"{self._prefix}.128.1"

    @property
    def dns_service(self) -> str:
        return f"{self._prefix}.128.10"


def free_slots(taken: Iterable[int], routes: Iterable[str]) -> Iterator[Addresses]:
    """Slots that no other cluster holds and whose network no route of this machine covers.

    `routes` are destinations in CIDR form; the default route is to be left out.
    """
    held = set(taken)
    networks = [ipaddress.ip_network(route, strict=False) for route in routes]
    for slot in range(SLOTS):
        addresses = Addresses(slot)
        network = ipaddress.ip_network(addresses.network)
        if slot not in held and not any(network.overlaps(other) for other in networks):
            yield addresses
