"""EndpointSlices as the gateway reads them, and what several of them say together. Pure.

A Service has one slice per 100 endpoints and address family, and an endpoint that moves from one to
another is in both for a while, perhaps with an older word in one of them. A pod of a StatefulSet
that was made anew has its name from before: slices that lag behind know two lives of it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from msgspec import Struct

from distserve.gateway.discovery import Endpoint

PORT_NAME = "engine"
"""Of the Service's ports, the one on which engines answer."""
_FURTHER_POD = re.compile(r"-[1-9][0-9]*$")
"""Name of a StatefulSet's pod that is not the first."""
_FAMILIES = ("IPv4", "IPv6")
"""Address types of pods, preferred first. The third one, FQDN, is never a pod's."""
SERVICE_LABEL = "kubernetes.io/service-name"


class Conditions(Struct, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None

    @property
    def serves(self) -> bool:
        """Whether the readiness probe passes. `ready` says it only where `serving` is not known:
        a Service that publishes addresses before they are ready has `ready` always true."""
        if self.serving is not None:
            return self.serving
        return self.ready is not False


class TargetRef(Struct, frozen=True):
    kind: str = ""
    name: str = ""
    uid: str = ""


class SliceEndpoint(Struct, frozen=True, rename="camel"):
    addresses: list[str] = []
    """Of equal worth: the first one is used, as everywhere."""
    conditions: Conditions = Conditions()
    target_ref: TargetRef | None = None


class Port(Struct, frozen=True):
    name: str | None = None
    port: int | None = None


class Metadata(Struct, frozen=True, rename="camel"):
    name: str = ""
    resource_version: str = ""
    labels: Mapping[str, str] | None = None


class EndpointSlice(Struct, frozen=True, rename="camel"):
    """discovery.k8s.io/v1, as far as it is needed. Go writes an empty list as null."""

    metadata: Metadata
    address_type: str = ""
    endpoints: list[SliceEndpoint] | None = None
    ports: list[Port] | None = None

    @property
    def service(self) -> str:
        """Whose endpoints they are."""
        return (self.metadata.labels or {}).get(SERVICE_LABEL, "")


@dataclass(frozen=True)
class _Life:
    """A pod from its creation to its end, as all slices together have it."""

    family: str
    url: str
    serves: bool
    terminating: bool

    def joined(self, other: "_Life") -> "_Life":
        """No work on the word of one slice alone: work that comes a moment later is worth more than
        work that fails."""
        place = min(self, other, key=lambda life: (_FAMILIES.index(life.family), life.url))
        return _Life(
            place.family,
            place.url,
            self.serves and other.serves,
            self.terminating or other.terminating,
        )


def instances(slices: Iterable[EndpointSlice]) -> list[Endpoint]:
    """One endpoint per pod, by name. Order and cut of the slices make no difference.

    Endpoints that are no pods, and slices without the engines' port, are left out. The first pod of
    an instance answers for all of them.
    """
    pods: dict[str, dict[str, _Life]] = defaultdict(dict)
    for one in slices:
        port = next((p.port for p in one.ports or () if p.name == PORT_NAME), None)
        if port is None or one.address_type not in _FAMILIES:
            continue
        for endpoint in one.endpoints or ():
            target = endpoint.target_ref
            if target is None or target.kind != "Pod" or not endpoint.addresses:
                continue
            if _FURTHER_POD.search(target.name):
                continue
            url = _url(one.address_type, endpoint.addresses[0], port)
            said = endpoint.conditions
            life = _Life(one.address_type, url, said.serves, bool(said.terminating))
            lives = pods[target.name]
            lives[target.uid] = lives[target.uid].joined(life) if target.uid in lives else life
    return [_endpoint(name, pods[name]) for name in sorted(pods)]


def count_serving(slices: Iterable[EndpointSlice]) -> int:
    """Pods that get work from a Service: all slices that know one say that it serves."""
    serves: dict[str, bool] = {}
    for one in slices:
        for endpoint in one.endpoints or ():
            target, said = endpoint.target_ref, endpoint.conditions
            if target is not None and target.kind == "Pod":
                works = said.serves and not said.terminating
                serves[target.uid] = serves.get(target.uid, True) and works
    return sum(serves.values())


def _endpoint(name: str, lives: dict[str, _Life]) -> Endpoint:
    """A StatefulSet makes a pod anew when the old one is gone: the life that does not end is it."""
    uid = min(lives, key=lambda u: (lives[u].terminating, not lives[u].serves, u))
    life = lives[uid]
    return Endpoint(name=name, url=life.url, ready=life.serves, terminating=life.terminating)


def _url(family: str, address: str, port: int) -> str:
    host = f"[{address}]" if family == "IPv6" else address
    return f"http://{host}:{port}"
