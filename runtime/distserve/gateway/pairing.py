"""How near a decode instance is to its prefill instance, and when nearness is not worth a queue.

A pair inside a unit moves KV over the fabric that the unit was placed for; a pair inside a domain
over the same links, beside others; any other pair over whatever lies between. So the nearest
scope is taken

    unit -> domain -> other

unless all its instances would let the request wait, more than twice as long as the least loaded
one does. Where nobody would let it wait, nearness alone decides.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum

from distserve.gateway.fleet import Member
from distserve.gateway.routing import Waiting
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


def queue(member: Member, waiting: Waiting, phases: Phases) -> float:
    """How long a queue the request would stand in; 0.0 where it soon begins.

    Prefill: batches before it, beyond the one that may be running. Decode: what it lacks, in
    blocks or in places in the batch, as a share of what the instance has.
    """
    info = member.info
    if info is None:
        return 0.0
    if phases is Phases.PREFILL:
        return max(0.0, member.outstanding_tokens / max(1, info.max_num_batched_tokens) - 1.0)
    blocks = -(-(waiting.context_tokens + waiting.output_tokens) // info.block_tokens)
    lacking = (
        (blocks - member.spare_blocks) / max(1, info.total_blocks),
        (member.seats + waiting.choices - info.max_num_seqs) / max(1, info.max_num_seqs),
    )
    return max(0.0, *lacking)


def bearable(queues: Mapping[Member, float]) -> list[Member]:
    """Where the request waits no more than so many times longer than where it waits least."""
    longest = QUEUE_RATIO * min(queues.values())
    return [member for member, found in queues.items() if found <= longest]


class Partners:
    """Decode instances that can take over from prefill instances of one kind, for one request at
    one moment."""

    def __init__(self, decodes: Iterable[Member], waiting: Waiting) -> None:
        """`decodes` is not empty, and keeps its order."""
        self._decodes = list(decodes)
        found = bearable({d: queue(d, waiting, Phases.DECODE) for d in self._decodes})
        self._units = {decode.unit for decode in found} - {""}
        self._domains = {decode.domain for decode in found} - {""}

    def scope(self, prefill: Member) -> Scope:
        """The nearest in which one of them is bearable: as `scope_of` says, without a look at each
        of them for each prefill instance."""
        if prefill.unit in self._units:
            return Scope.UNIT
        return Scope.DOMAIN if prefill.domain in self._domains else Scope.OTHER

    def near(self, prefill: Member) -> list[Member]:
        """Those in that scope. Who is nearer was passed over."""
        scope = self.scope(prefill)
        return [decode for decode in self._decodes if scope_of(prefill, decode) is scope]


def nearest(partners: Mapping[Member, Partners], waiting: Waiting) -> list[Member]:
    """Prefill instances with a near partner, unless they have much more to do than the others.
    `partners` is not empty, and keeps its order."""
    scopes = {prefill: found.scope(prefill) for prefill, found in partners.items()}
    queues = {prefill: queue(prefill, waiting, Phases.PREFILL) for prefill in partners}
    scope = min(scopes[prefill] for prefill in bearable(queues))
    return [prefill for prefill, found in scopes.items() if found is scope]
