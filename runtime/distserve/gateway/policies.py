"""Routing policies by name: which of several fitting instances takes the leg."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distserve.gateway.fleet import Member
from distserve.gateway.generation import Generation
from distserve.gateway.prefix import PrefixIndex
from distserve.wire.dialect import Phases


def load(member: Member, phases: Phases) -> tuple[int, ...]:
    """Smaller is better. A prefill waits for the prompts before it; a decode needs room."""
    if phases is Phases.DECODE:
        return (-member.spare_blocks, member.legs)
    return (member.outstanding_tokens, -member.spare_blocks, member.legs)


def least(members: Sequence[Member], phases: Phases) -> Member:
    """Ties go to the first name, so that a decision can be repeated."""
    return min(members, key=lambda m: (load(m, phases), m.name))


@dataclass
class _Indexed:
    """What all policies know of prefix caches: nothing, unless events are followed."""

    index: PrefixIndex | None = None

    def cached_tokens(self, member: Member, waiting: Generation) -> int:
        if self.index is None or member.info is None:
            return 0
        size = member.info.block_tokens
        return self.index.cached_blocks(member.name, waiting.block_hashes(size)) * size


@dataclass
class RoundRobin(_Indexed):
    """In turn, per kind of leg: whose last turn is longest ago, so that it is fair to every one
    of whatever members it is asked to choose from."""

    _turns: dict[tuple[Phases, str], int] = field(default_factory=dict)
    _turn: int = 0

    def pick(self, members: Sequence[Member], waiting: Generation, phases: Phases) -> Member:
        chosen = min(members, key=lambda m: (self._turns.get((phases, m.name), 0), m.name))
        self._turn += 1
        self._turns[phases, chosen.name] = self._turn
        return chosen


@dataclass
class LeastOutstanding(_Indexed):
    """Prefill: fewest prompt tokens outstanding. Decode: most blocks left after reserving."""

    def pick(self, members: Sequence[Member], waiting: Generation, phases: Phases) -> Member:
        return least(members, phases)


@dataclass(kw_only=True)
class PowerOfTwoChoices(_Indexed):
    """The better of two drawn at random: many gateways with stale views do not herd."""

    draw: random.Random

    def pick(self, members: Sequence[Member], waiting: Generation, phases: Phases) -> Member:
        return least(self.draw.sample(list(members), min(2, len(members))), phases)


@dataclass
class PrefixAware(_Indexed):
    """Longest cached prefix. A prefill goes there unless more than one full batch of prompt
    tokens waits there beyond the least loaded; for a decode a cached block counts like a free
    one, which it saves."""

    def pick(self, members: Sequence[Member], waiting: Generation, phases: Phases) -> Member:
        if phases is Phases.DECODE:
            return min(members, key=lambda m: (-self._room(m, waiting), m.legs, m.name))
        floor = min(m.outstanding_tokens for m in members)
        near = [m for m in members if m.outstanding_tokens <= floor + _batch_tokens(m)]
        return min(near, key=lambda m: (-self.cached_tokens(m, waiting), load(m, phases), m.name))

    def _room(self, member: Member, waiting: Generation) -> int:
        size = member.info.block_tokens if member.info else 1
        return member.spare_blocks + self.cached_tokens(member, waiting) // size


def _batch_tokens(member: Member) -> int:
    return member.info.max_num_batched_tokens if member.info else 0


AnyPolicy = RoundRobin | LeastOutstanding | PowerOfTwoChoices | PrefixAware

POLICIES: dict[str, Callable[[PrefixIndex | None, random.Random], AnyPolicy]] = {
    "RoundRobin": lambda index, draw: RoundRobin(index),
    "LeastOutstanding": lambda index, draw: LeastOutstanding(index),
    "PowerOfTwoChoices": lambda index, draw: PowerOfTwoChoices(index, draw=draw),
    "PrefixAware": lambda index, draw: PrefixAware(index),
}
"""A new policy is a class and a line here."""

NEED_INDEX = frozenset({"PrefixAware"})
