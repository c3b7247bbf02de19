"""The accelerators to plan for: nodes of possibly different sizes, and the network between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distserve.planner.errors import InvalidRequest
from distserve.planner.links import DEFAULT_NETWORK, Link, load_link


@dataclass(frozen=True)
class Machine:
    """Free accelerators by node.

    `high_affinity` says that nodes are joined by a network fast enough for KV migration, so that
    prefill and decode instances may lie on different nodes.
    """

    nodes: Sequence[int]
    max_accelerators: int | None = None
    high_affinity: bool = False
    network: str = DEFAULT_NETWORK
    span_nodes: bool = True
    """Whether a unit may cross nodes by pipeline segments; otherwise it lies within one."""
    domains: Sequence[Sequence[int]] = ()
    """The same nodes by fabric domain, where a unit has to lie in one domain."""

    def __post_init__(self) -> None:
        if not self.nodes or min(self.nodes) < 0 or self.accelerators < 1:
            raise InvalidRequest("the machine has no accelerators; give nodes that have some")

    @property
    def accelerators(self) -> int:
        """Accelerators that may be used."""
        total = sum(self.nodes)
        return total if self.max_accelerators is None else min(total, self.max_accelerators)

    @property
    def largest_node(self) -> int:
        return min(max(self.nodes), self.accelerators)

    def copies(self, segment: int, segments: int = 1) -> int:
        """How many units fit whose `segments` parts of `segment` accelerators each fit a node."""
        slots = sum(node // segment for node in self.nodes)
        return min(slots // segments, self.accelerators // (segment * segments))

    def scattered(self, parts: Mapping[int, int]) -> int:
        """How many units fit of which each part, `parts[accelerators]` of them, needs one node.

        Of at most two sizes: a room that no large part takes holds as many small ones as it can.
        """
        fitting = sum(_scattered(nodes, parts) for nodes in self.domains or (self.nodes,))
        return min(fitting, self.accelerators // sum(n * size for size, n in parts.items()))

    def link(self, within_node: bool) -> Link:
        return load_link(self.network, "intra_node" if within_node else "inter_node")


def _scattered(nodes: Sequence[int], parts: Mapping[int, int]) -> int:
    large, small = max(parts), min(parts)
    rooms = sum(node // large for node in nodes)
    fitting = rooms // parts[large]
    if small < large:
        each = large // small
        rest = sum(node % large // small for node in nodes)
        fitting = min(fitting, (rooms * each + rest) // (parts[large] * each + parts[small]))
    return fitting
