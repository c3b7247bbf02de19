"""What the links of a deployment are and should be: pure, called by `decide`.

    containers of both run -> LinksQuestion -> measured -> FabricVerified, status, SlowFabric
                                                       '-> with fabricRequired: the gate of its pods

A gate is opened once for a pod's life and never closed: a figure that gets worse is told, and takes
nobody out of service who serves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from distserve.api import labels
from distserve.api.conditions import Condition, FabricVerifiedReason, ReadyReason
from distserve.api.deployment import DistServeDeployment, Spec
from distserve.api.fabric import NODE
from distserve.api.strategies import Role
from distserve.operator.conditions import Fact, timestamp
from distserve.operator.health import LiveInstance, LiveUnit
from distserve.operator.model import Answers, Apply, Object, Observed, Pod
from distserve.operator.pairs import Link, LinksQuestion, Member, Pair, UnitLinks
from distserve.placement.nodes import Node

FINGERPRINT_DIGITS: Final = 8
"""Enough to tell two of them apart; whole ones stand in `status.units`."""
TOLD_FINGERPRINTS: Final = 3
"""Of a unit. Its status has room for as many of the longest that are kept."""
SUFFIXES: Final = ("", "k", "M", "G", "T", "P")


@dataclass(frozen=True)
class Fabric:
    question: LinksQuestion | None = None
    """None: no pair runs."""
    units: Mapping[str, UnitLinks] = field(default_factory=dict)
    fact: Fact | None = None
    """None: its strategy has no pairs."""
    gates: tuple[Apply, ...] = ()
    """Pods whose gate is opened."""
    held: int = 0
    """Pods that only their gate keeps from being ready, and keeps."""
    apart: bool = False
    """Instances of both roles are ready, and no gateway gives a request to any two of them."""

    @property
    def facts(self) -> dict[Condition, Fact]:
        return {} if self.fact is None else {Condition.FABRIC_VERIFIED: self.fact}

    @property
    def missing(self) -> Fact | None:
        """What it keeps from being ready."""
        if self.apart and self.fact is not None:
            message = (
                "no prefill instance can give its KV to any decode instance, so no request is "
                f"served; {self.fact.message}"
            )
            return Fact(False, ReadyReason.FINGERPRINT_MISMATCH, message)
        if not self.held or self.fact is None:
            return None
        message = f"topology.fabricRequired holds {self.held} pods; {self.fact.message}"
        return Fact(False, ReadyReason.FABRIC_NOT_VERIFIED, message)

    def status_of(self, unit: str) -> Object:
        """Its part of `status.units`."""
        known = self.units.get(unit)
        if known is None:
            return {}
        found: Object = {}
        if known.fingerprints:
            found["fingerprint"] = ",".join(known.fingerprints[:TOLD_FINGERPRINTS])
        if (link := known.slowest) is not None:
            found["fabric"] = {
                "reader": link.pair.reader.pod,
                "source": link.pair.source.pod,
                "transport": link.transport,
                "level": link.pair.level,
                "bandwidth": quantity(link.bandwidth),
                "expected": quantity(link.pair.expected) if link.pair.expected else "",
                "latency": f"{link.latency_ms:.3g}ms",
            }
        return found


def fabric_of(
    observed: Observed,
    answers: Answers,
    deployment: DistServeDeployment,
    live: Mapping[str, LiveUnit],
    secret: str,
) -> Fabric:
    """`secret`: name of that with the deployment's key."""
    spec = deployment.spec
    if not {Role.PREFILL, Role.DECODE} <= spec.roles.keys():
        return Fabric()
    pairs = {name: tuple(_pairs(unit, spec, observed.nodes)) for name, unit in live.items()}
    asked = {name: found for name, found in pairs.items() if found}
    known = {name: links for name, links in answers.links.items() if name in asked}
    opened, held = [], 0
    for name, unit in live.items():
        links = known.get(name, UnitLinks()).links
        for instance in unit.instances.values():
            closed = [p for p in instance.pods if p.fabric_gate is False and not p.terminating]
            if not spec.topology.fabric_required or _verified(instance, links):
                opened += [_opened(observed, pod) for pod in closed]
            else:
                held += sum(pod.containers_ready for pod in closed)
    return Fabric(
        LinksQuestion(secret, asked) if asked else None,
        known,
        fact_of(known, sum(map(len, asked.values()))),
        tuple(opened),
        held,
        are_apart(live, known),
    )


# ---- pairs --------------------------------------------------------------------------------------


def _pairs(unit: LiveUnit, spec: Spec, nodes: Mapping[str, Node | None]) -> Iterator[Pair]:
    """Those of one unit that can be asked now. Pairs across units use the same links or worse."""
    members = {role.value: list(members_of(unit, role)) for role in (Role.PREFILL, Role.DECODE)}
    for reader in members["decode"]:
        for source in members["prefill"]:
            shared = shared_levels(spec, nodes, reader.node, source.node)
            level, expected = spec.expected_bandwidth(shared) or (next(iter(shared), ""), None)
            yield Pair(reader, source, level, expected)


def members_of(unit: LiveUnit, role: Role) -> Iterator[Member]:
    """First pods of its instances of this role that can be asked something."""
    for name, instance in sorted(unit.instances.items()):
        for pod in instance.pods:
            if (
                instance.role == role.value
                and pod.name == f"{name}-0"
                and pod.containers_ready
                and pod.host
                and not pod.terminating
            ):
                yield Member(pod.name, pod.uid, pod.host, pod.node, pod.restarts)


def shared_levels(spec: Spec, nodes: Mapping[str, Node | None], one: str, other: str) -> list[str]:
    """Names of the levels of which two nodes have one domain, tightest first."""
    found = [NODE] if one == other else []
    here, there = nodes.get(one), nodes.get(other)
    for level in spec.topology.resolved_levels:
        values = [node.labels.get(level.node_label) for node in (here, there) if node is not None]
        if one == other or (len(values) == 2 and values[0] is not None and values[0] == values[1]):
            found.append(level.name)
    return found


def are_apart(live: Mapping[str, LiveUnit], units: Mapping[str, UnitLinks]) -> bool:
    """Gateways pair ready instances of equal fingerprints, across units where they must. One whose
    fingerprint is not known may serve."""
    known = {life: one for links in units.values() for life, one in links.engines.items()}
    ready: dict[str, set[str]] = defaultdict(set)
    for unit in live.values():
        for name, instance in unit.instances.items():
            if instance.ready:
                lives = ((p.uid, p.restarts) for p in instance.pods if p.name == f"{name}-0")
                ready[instance.role].add(known.get(next(lives, ("", 0)), ""))
    prefill, decode, hybrid = (ready[role] for role in ("prefill", "decode", "hybrid"))
    unknown = "" in prefill | decode
    return bool(prefill and decode) and not (hybrid or unknown or prefill & decode)


# ---- gates --------------------------------------------------------------------------------------


def _verified(instance: LiveInstance, links: tuple[Link, ...]) -> bool:
    """One measured link is enough, so that readiness waits for no particular peer; one that is slow
    is too many."""
    own = {pod.uid for pod in instance.pods}
    mine = [
        link
        for link in links
        if link.measured and own & {link.pair.reader.uid, link.pair.source.uid}
    ]
    return bool(mine) and not any(link.slow for link in mine)


def _opened(observed: Observed, pod: Pod) -> Apply:
    condition = {
        "type": labels.FABRIC_VERIFIED,
        "status": "True",
        "reason": FabricVerifiedReason.AS_EXPECTED.value,
        "message": "its links were measured",
        "lastTransitionTime": timestamp(observed.now),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": observed.document["metadata"]["namespace"],
        },
        "status": {"conditions": [condition]},
    }
    return Apply(document, pod.uid, subresource="status")


# ---- words --------------------------------------------------------------------------------------


def fact_of(units: Mapping[str, UnitLinks], pairs: int) -> Fact:
    """`pairs`: of how many links it speaks, measured or not."""
    mismatches = [
        (name, link)
        for name, found in sorted(units.items())
        for link in found.links
        if len(found.fingerprints) > 1 and not link.measured
    ]
    if mismatches:
        return _mismatch(units, *mismatches[0])
    links = [(name, link) for name, found in sorted(units.items()) for link in found.links]
    measured = [(name, link) for name, link in links if link.measured]
    if not measured:
        why = next((link.trouble for _, link in links if link.trouble), "")
        return Fact(
            None,
            FabricVerifiedReason.NOT_MEASURED,
            f"not measured yet: {why}" if why else "measured once both instances of a pair run",
        )
    unit, slowest = min(measured, key=lambda one: (one[1].share, one[1].bandwidth))
    said = _said(unit, slowest)
    count = f"{len(measured)} of {pairs} links are measured"
    if slowest.slow:
        others = sum(link.slow for _, link in measured) - 1
        more = f" ({others} more links are slow)" if others else ""
        return Fact(False, FabricVerifiedReason.SLOW_FABRIC, f"{said}{more}; {_cure(slowest)}")
    if slowest.pair.expected is None:
        return Fact(
            None,
            FabricVerifiedReason.NO_EXPECTATION,
            f"{said}, and nothing says what it should be; set topology.expectedBandwidth to have "
            f"it compared. {count}",
        )
    return Fact(True, FabricVerifiedReason.AS_EXPECTED, f"{count}; the slowest: {said}")


def _mismatch(units: Mapping[str, UnitLinks], unit: str, link: Link) -> Fact:
    """What one of them computes is of no use to the other: no request is ever given to both."""
    pair = link.pair
    found = ", ".join(one[:FINGERPRINT_DIGITS] for one in units[unit].fingerprints)
    told = f" ({link.trouble})" if link.trouble else ""
    return Fact(
        False,
        FabricVerifiedReason.FINGERPRINT_MISMATCH,
        f"unit {unit}: {pair.reader.pod} cannot use the KV of {pair.source.pod}: its engines have "
        f"different fingerprints, {found}{told}; they loaded different models, types or block "
        "sizes, or are of different versions: compare the pods' imageID (a tag that was moved), "
        "what podTemplate sets for one role alone, and the model's files on both nodes; mend it "
        "and delete the pods that differ",
    )


def _said(unit: str, link: Link) -> str:
    pair = link.pair
    where = f" of level {pair.level}" if pair.level else ""
    expected = f", expected{where}: {rate(pair.expected)}" if pair.expected else ""
    return (
        f"unit {unit}: {pair.reader.pod} reads from {pair.source.pod} over {link.transport} at "
        f"{rate(link.bandwidth)} (latency {link.latency_ms:.2g} ms){expected}"
    )


def _cure(link: Link) -> str:
    pair = link.pair
    where = (
        f"the path from node {pair.source.node} to {pair.reader.node}"
        if pair.source.node != pair.reader.node
        else f"node {pair.reader.node}"
    )
    tried = f" (not used: {link.trouble})" if link.trouble else ""
    return (
        f"look at {where}{tried}: docs/placement.md#the-proof; if it cannot give more, set "
        f"topology.expectedBandwidth.{pair.level or NODE}"
    )


def rate(bytes_per_second: float) -> str:
    """For people: 3.1 GB/s."""
    found = quantity(bytes_per_second)
    number = found.rstrip("kMGTP")
    return f"{number} {found[len(number) :]}B/s"


def quantity(number: float) -> str:
    """Three digits and a decimal suffix: 3.14G."""
    for suffix in SUFFIXES:
        if round(number, 0) < 999.5 or suffix == SUFFIXES[-1]:
            return f"{number:.3g}{suffix}"
        number /= 1000
    raise AssertionError("the last suffix takes all")
