"""What a router is: `choose(waiting, members) -> Route | Wait`, and what the routers share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from distserve.gateway.fleet import Fleet, Member
from distserve.gateway.generation import Generation
from distserve.wire.dialect import Condition, Phases


@dataclass(frozen=True)
class Stop:
    """A place on a route: which instance does what."""

    member: Member
    phases: Phases
    only_if: Condition | None = None
    """The engine tests it against its own state before it takes the leg."""


@dataclass(frozen=True)
class Route:
    """Where a generation runs: [both], or [prefill, decode]."""

    stops: tuple[Stop, ...]


@dataclass(frozen=True)
class Wait:
    """No route now. Asked again when the fleet changes, and when `again_seconds` are over."""

    reason: str
    again_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Waiting:
    """A generation that has no route yet."""

    generation: Generation
    since: float
    avoid: frozenset[str] = frozenset()
    """Instances on which it failed: taken only where there is no other."""
    prior_tokens: int = 0
    """Output that a replay begins with."""
    choices: int = 1
    """Of the generation's, those that are to come here: replays go on apart."""
    fingerprint: str = ""
    """Of who gave its first token; empty before that."""

    @property
    def context_tokens(self) -> int:
        """Before the first new token."""
        return self.generation.prompt_tokens + self.prior_tokens

    @property
    def longest_tokens(self) -> int:
        """Of a choice with its prompt, at its end."""
        return self.generation.prompt_tokens + self.generation.sampling.max_tokens

    @property
    def output_tokens(self) -> int:
        """At most, all choices together."""
        return self.choices * (self.generation.sampling.max_tokens - self.prior_tokens)

    @property
    def ends_at_first_token(self) -> bool:
        """Nothing would be left to decode elsewhere."""
        return self.generation.sampling.max_tokens - self.prior_tokens <= 1


class Policy(Protocol):
    """Chooses among equals. `members` is never empty and sorted by name."""

    def pick(self, members: Sequence[Member], waiting: Generation, phases: Phases) -> Member: ...

    def cached_tokens(self, member: Member, waiting: Generation) -> int:
        """Prompt tokens that the instance is known to have cached."""
        ...


class Router(Protocol):
    """A strategy's routing. Pure but for the policy's own turn and draw."""

    def choose(self, waiting: Waiting, members: list[Member]) -> Route | Wait:
        """`members` take work and are sorted by name. A Wait without `again_seconds` says who is
        missing, and so holds for all who wait with this tokenizer."""
        ...

    def order(self, waiting: Sequence[Waiting], fleet: Fleet) -> Sequence[Waiting]:
        """Who is asked first. Asked on every change of the fleet."""
        ...

    def complete(self, ready: list[Member]) -> bool:
        """Whether these are enough for any route."""
        ...


@dataclass(frozen=True)
class RoutingOptions:
    min_remote_prefill_tokens: int = 0


MakeRouter = Callable[[Policy, RoutingOptions], Router]


def choose(router: Router, waiting: Waiting, fleet: Fleet) -> Route | Wait:
    """Over the first instances that make a route of any kind, be it of another strategy or with
    another meaning of KV."""
    answer: Route | Wait = Wait("no instance is ready")
    asked: list[list[Member]] = []
    for members in _preferred(waiting, fleet):
        if members in asked:
            continue
        asked.append(members)
        answer = router.choose(waiting, members)
        if isinstance(answer, Route):
            break
    return answer


def _preferred(waiting: Waiting, fleet: Fleet) -> Iterator[list[Member]]:
    """Best first. Who failed again and again is left alone while the others make a route. One that
    is too short is asked only where all are: it says so."""
    ready = fleet.ready(waiting.longest_tokens)
    if waiting.fingerprint:
        yield [member for member in ready if _goes_on(member, waiting)]
    yield ready
    yield fleet.able(waiting.longest_tokens)
    yield fleet.ready()
    yield fleet.able()


def _goes_on(member: Member, waiting: Waiting) -> bool:
    """The text goes on with the model that began it, and not where that failed just now."""
    return member.fingerprint == waiting.fingerprint and member.name not in waiting.avoid


def first_come(waiting: Sequence[Waiting], fleet: Fleet) -> Sequence[Waiting]:
    return sorted(waiting, key=lambda w: w.since)


def fitting(members: Iterable[Member], tokenizer: str) -> list[Member]:
    """Members that read token ids as they were meant."""
    return [m for m in members if m.info and m.tokenizer == tokenizer]


def preferring(members: list[Member], avoid: frozenset[str]) -> list[Member]:
    """Without those to avoid, unless nobody else is there."""
    return [m for m in members if m.name not in avoid] or members
