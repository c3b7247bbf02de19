"""How near a decode instance is to its prefill instance, and when nearness is not worth a queue.

A pair inside a unit moves KV over the fabric that the unit was placed for; a pair inside a domain
over the same links, beside others; any other pair over whatever lies between. So the nearest
scope is taken

    unit -> domain -> other

unless all its instances would let the request wait, more than twice as long as the least loaded
one does. Where nobody would let it wait, nearness alone decides.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from distserve.gateway.fleet import Member
from distserve.gateway.generation import Generation
from distserve.wire.dialect import Phases

QUEUE_RATIO = 2.0
"""How many times longer the nearer queue may be. At 1 every small difference would send pairs
apart as soon as all instances are busy."""


class Scope(IntEnum):
    """Nearest first."""

    UNIT = 0
    DOMAIN = 1
    OTHER = 2


def scope_of(one: Member, other: Member) -> Scope:
    """What is not known of an instance is shared with nobody."""
    if one.unit and one.unit == other.unit:
        return Scope.UNIT
    if one.domain and one.domain == other.domain:
        return Scope.DOMAIN
    return Scope.OTHER


def queue(member: Member, generation: Generation, phases: Phases) -> float:
    """How long a queue the request would stand in; 0.0 where it soon begins.

    Prefill: batches before it, beyond the one that may be running. Decode: what it lacks, in
    blocks or in places in the batch, as a share of what the instance has.
    """
    info = member.info
    if info is None:
        return 0.0
    if phases is Phases.PREFILL:
        return max(0.0, member.outstanding_tokens / max(1, info.max_num_batched_tokens) - 1.0)
    blocks = -(-(generation.prompt_tokens + generation.output_tokens) // info.block_tokens)
    lacking = (
        (blocks - member.spare_blocks) / max(1, info.total_blocks),
        (member.legs + 1 - info.max_num_seqs) / max(1, info.max_num_seqs),
    )
    return max(0.0, *lacking)


@dataclass(frozen=True)
class Near:
    """Of some candidates, those in the scope that is worth it."""

    scope: Scope
    members: list[Member]


def near(candidates: Mapping[Member, Scope], queues: Mapping[Member, float]) -> Near:
    """`candidates` is not empty, and keeps its order."""
    bearable = QUEUE_RATIO * min(queues[member] for member in candidates)
    for scope in Scope:
        within = [member for member, found in candidates.items() if found <= scope]
        if any(queues[member] <= bearable for member in within):
            passed_over = {m for m in within if candidates[m] < scope and queues[m] > bearable}
            return Near(scope, [member for member in within if member not in passed_over])
    raise AssertionError("the shortest queue is bearable")


@dataclass
class Pairing:
    """The partners of prefill instances, for one request at one moment."""

    generation: Generation
    _decodes: dict[Member, float] = field(default_factory=dict)

    def decodes(self, prefill: Member, candidates: Iterable[Member]) -> Near:
        scopes = {decode: scope_of(prefill, decode) for decode in candidates}
        for decode in scopes.keys() - self._decodes.keys():
            self._decodes[decode] = queue(decode, self.generation, Phases.DECODE)
        return near(scopes, self._decodes)

    def prefills(self, partners: Mapping[Member, Near]) -> list[Member]:
        """Those with a near partner, unless they have much more to do than the others."""
        queues = {p: queue(p, self.generation, Phases.PREFILL) for p in partners}
        return near({p: found.scope for p, found in partners.items()}, queues).members
