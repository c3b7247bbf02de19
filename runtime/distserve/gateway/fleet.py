"""The instances as the gateway sees them: what they report, and what was sent since.

Engines are the authority on their load. Between two reports this gateway's own dispatches are
added, so that a burst does not land on the one instance that looked best.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from distserve.gateway.discovery import Endpoint
from distserve.wire.dialect import InstanceInfo, InstanceState, Phases

EVICT_AFTER_FAILURES = 3
EVICT_AFTER_HANDOVERS = 2
EVICT_SECONDS = 2.0
MAX_EVICT_SECONDS = 30.0

WAITING_PHASES = frozenset({"waiting", "prefill"})
UNRESERVED_PHASES = frozenset({"waiting", "expected"})


@dataclass(eq=False)
class Flight:
    """A leg from its dispatch to its end: counted until the instance reports it itself."""

    leg: str
    member: "Member"
    phases: Phases
    prompt_tokens: int
    output_tokens: int
    seats: int = 1
    """Places in a batch: one for each choice."""
    break_off: Callable[[], None] = lambda: None
    """Set while the leg is open: ends it as if the connection had failed."""

    def land(self) -> None:
        self.member.land(self)


@dataclass(eq=False)
class Member:
    """One instance of the fleet."""

    endpoint: Endpoint
    info: InstanceInfo | None = None
    """None until it has answered."""
    files: str = ""
    """Equal where the same text, and the same chat, gives the same ids."""
    state: InstanceState | None = None
    """None while its reports do not come in."""
    flights: dict[str, Flight] = field(default_factory=dict)
    failures: int = 0
    """Legs that failed, one after the other."""
    failed_handovers: int = 0
    """Hand-overs of KV that failed, from here or to here, one after the other."""
    handover_failed_at: dict[str, float] = field(default_factory=dict)
    """When the last one from here failed, by its target's name."""
    evicted_until: float = 0.0
    _reported: frozenset[str] = frozenset()
    _landed: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.endpoint.name

    @property
    def url(self) -> str:
        return self.endpoint.url

    @property
    def role(self) -> str:
        return self.endpoint.role or (self.info.role if self.info else "")

    @property
    def unit(self) -> str:
        return self.endpoint.unit or (self.info.unit if self.info else "")

    @property
    def revision(self) -> str:
        return self.endpoint.revision or (self.info.revision if self.info else "")

    @property
    def domain(self) -> str:
        return self.endpoint.domain or (self.info.domain if self.info else "")

    @property
    def fingerprint(self) -> str:
        return self.info.fingerprint if self.info else ""

    @property
    def tokenizer(self) -> str:
        return self.info.tokenizer if self.info else ""

    @property
    def max_model_len(self) -> int:
        return self.info.max_model_len if self.info else 0

    def introduce(self, info: InstanceInfo) -> None:
        """It has answered."""
        self.info = info
        self.files = "\n".join(f"{name} {sha}" for name, sha in sorted(info.files.items()))
        self._changed()

    # ---- load -------------------------------------------------------------------------------
    # Worked out once after each change: routers compare all instances, several times a request.

    @cached_property
    def outstanding_tokens(self) -> int:
        """Prompt tokens that are still to be prefilled here."""
        reported = sum(
            r.context_tokens
            for r in (self.state.requests if self.state else ())
            if r.phase in WAITING_PHASES and r.leg not in self._landed
        )
        return reported + sum(
            f.prompt_tokens for f in self._unreported() if f.phases is not Phases.DECODE
        )

    @cached_property
    def spare_blocks(self) -> int:
        """Blocks left when every known request gets all that it may grow to. Can be negative."""
        if self.state is None or self.info is None:
            return 0
        size = self.info.block_tokens
        spare = self.state.free_blocks
        for r in self.state.requests:
            if r.leg not in self._landed:
                held = 0 if r.phase in UNRESERVED_PHASES else r.context_tokens
                spare -= _blocks(r.context_tokens + r.tokens_left, size) - _blocks(held, size)
        for f in self._unreported():
            output = 0 if f.phases is Phases.PREFILL else f.output_tokens
            spare -= _blocks(f.prompt_tokens + output, size)
        return spare

    @cached_property
    def legs(self) -> int:
        """Legs that wait or run here, from whichever gateway."""
        reported = sum(
            r.leg not in self._landed for r in (self.state.requests if self.state else ())
        )
        return reported + sum(1 for _ in self._unreported())

    @cached_property
    def seats(self) -> int:
        """Places in the batch that these legs have or wait for."""
        reported = sum(
            r.seats
            for r in (self.state.requests if self.state else ())
            if r.leg not in self._landed
        )
        return reported + sum(f.seats for f in self._unreported())

    def _unreported(self) -> Iterable[Flight]:
        return (f for f in self.flights.values() if f.leg not in self._reported)

    def take_off(self, flight: Flight) -> None:
        self.flights[flight.leg] = flight
        self._changed()

    def land(self, flight: Flight) -> None:
        if self.flights.pop(flight.leg, None) and flight.leg in self._reported:
            self._landed.add(flight.leg)
        self._changed()

    def observe(self, state: InstanceState) -> None:
        self.state = state
        self._reported = frozenset(r.leg for r in state.requests)
        self._landed &= self._reported
        self._changed()

    def _changed(self) -> None:
        for figure in ("outstanding_tokens", "spare_blocks", "legs", "seats"):
            self.__dict__.pop(figure, None)

    # ---- health -----------------------------------------------------------------------------

    @property
    def takes_work(self) -> bool:
        """As it says itself, and as discovery does."""
        return (
            self.endpoint.ready
            and not self.endpoint.terminating
            and self.info is not None
            and self.state is not None
            and self.state.ready
            and not self.state.draining
        )

    def is_evicted(self, now: float) -> bool:
        """Left alone for what failed there, as long as there is a route without it."""
        return now < self.evicted_until

    @property
    def place(self) -> tuple[str, str, str]:
        """Equal where one replaces the other: in role, meaning of KV, meaning of token ids."""
        return (self.role, self.fingerprint, self.tokenizer)

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self, now: float) -> None:
        """After some failures in a row the instance is left alone, longer each time; then one
        more failure evicts it again. What fails meanwhile was sent before, and is the same fault:
        one death takes many legs with it."""
        if self.is_evicted(now):
            return
        self.failures += 1
        self.evict(now, self.failures - EVICT_AFTER_FAILURES)

    def evict(self, now: float, excess: int) -> None:
        """For failures that were so many more than are borne; below zero not at all."""
        if excess >= 0:
            self.evicted_until = now + min(EVICT_SECONDS * 2 ** min(excess, 8), MAX_EVICT_SECONDS)

    def lost(self) -> None:
        """It does not answer any more: whatever is open there fails now, not at its timeout."""
        self.forget()
        for flight in list(self.flights.values()):
            flight.break_off()

    def forget(self) -> None:
        """What it reported is no longer known to be so."""
        self.state = None
        self._reported = frozenset()
        self._landed.clear()
        self._changed()


def handover_succeeded(source: Member, target: Member) -> None:
    source.failed_handovers = target.failed_handovers = 0
    source.handover_failed_at.clear()


def to_blame(source: Member, target: Member, ready: Collection[Member]) -> Member | None:
    """For hand-overs between the two that failed. The one that fails with others as well has failed
    more often in a row. As long as that is neither, it is the source, since the target's next one
    then shows; but nobody is left alone on a mere guess whom no other of its role replaces."""
    if source.failed_handovers != target.failed_handovers:
        return max(source, target, key=lambda member: member.failed_handovers)
    return next((member for member in (source, target) if _is_replaced(member, ready)), None)


def _is_replaced(member: Member, ready: Collection[Member]) -> bool:
    return any(other.place == member.place and other is not member for other in ready)


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


class Fleet:
    """All members, and a way to be told when anything about them changes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.members: dict[str, Member] = {}
        self._listeners: list[Callable[[], None]] = []

    def ready(self, context_tokens: int = 0) -> list[Member]:
        """Members that take work of so many tokens and are not left alone, by name."""
        now = self.clock()
        return [member for member in self._willing(context_tokens) if not member.is_evicted(now)]

    def able(self, context_tokens: int = 0) -> list[Member]:
        """Also those that are left alone and that no other replaces, for when who is ready makes no
        route: some requests may fail there, and without them all would. Who takes fewer tokens
        neither counts nor replaces another one."""
        now = self.clock()
        willing = self._willing(context_tokens)
        taken = {member.place for member in willing if not member.is_evicted(now)}
        return [m for m in willing if m.place not in taken or not m.is_evicted(now)]

    def _willing(self, context_tokens: int) -> list[Member]:
        willing = (
            member
            for member in self.members.values()
            if member.takes_work and member.max_model_len >= context_tokens
        )
        return sorted(willing, key=lambda member: member.name)

    def handover_failed(self, source: Member, target: Member, begun: float) -> None:
        """The target could not fetch, though both answer: the migrator of one of them is not
        reached, or reaches nobody. What had begun when the last one between the two failed is the
        same fault: one lost connection takes many with it."""
        now = self.clock()
        is_known = begun <= source.handover_failed_at.get(target.name, -math.inf)
        if is_known or source.is_evicted(now) or target.is_evicted(now):
            return
        source.handover_failed_at[target.name] = now
        source.failed_handovers += 1
        target.failed_handovers += 1
        if blamed := to_blame(source, target, self.ready()):
            blamed.evict(now, blamed.failed_handovers - EVICT_AFTER_HANDOVERS)

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def notify(self) -> None:
        for listener in self._listeners:
            listener()
