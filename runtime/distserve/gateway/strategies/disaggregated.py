"""Disaggregated: a prefill instance and a decode instance that can take over its KV."""

from collections.abc import Sequence
from dataclasses import dataclass

from distserve.gateway.fleet import Fleet, Member
from distserve.gateway.pairing import Partners, nearest
from distserve.gateway.routing import (
    Policy,
    Route,
    RoutingOptions,
    Stop,
    Wait,
    Waiting,
    first_come,
    fitting,
    preferring,
)
from distserve.wire.dialect import Phases


def kind_of(member: Member) -> tuple[str, str]:
    """What KV means to it, and the spec that it was made from."""
    return (member.fingerprint, member.revision)


def of_revision(prefill: Member, decodes: list[Member]) -> list[Member]:
    """Of these, those that were made from the same spec, where there are any."""
    return [d for d in decodes if d.revision == prefill.revision] or decodes


@dataclass(frozen=True)
class DisaggregatedRouter:
    policy: Policy
    options: RoutingOptions

    def choose(self, waiting: Waiting, members: list[Member]) -> Route | Wait:
        generation, avoid = waiting.generation, waiting.avoid
        ready = fitting(members, generation.tokenizer)
        decodes = _by_fingerprint(ready)
        able = _able(ready, decodes)
        if not able:
            return Wait(_missing(ready))
        if local := self._without_transfer(waiting, preferring(ready, avoid)):
            return local
        prefills = preferring(_with_kin(able, decodes), avoid)
        if waiting.ends_at_first_token:
            prefill = self.policy.pick(prefills, generation, Phases.PREFILL)
            return Route((Stop(prefill, Phases.BOTH),))
        partners = _partners(prefills, decodes, waiting)
        prefill = self.policy.pick(nearest(partners, waiting), generation, Phases.PREFILL)
        near = partners[prefill].near(prefill)
        decode = self.policy.pick(near, generation, Phases.DECODE)
        return Route((Stop(prefill, Phases.PREFILL), Stop(decode, Phases.DECODE)))

    def order(self, waiting: Sequence[Waiting], fleet: Fleet) -> Sequence[Waiting]:
        return first_come(waiting, fleet)

    def complete(self, ready: list[Member]) -> bool:
        return bool(_able(ready, _by_fingerprint(ready)))

    def _without_transfer(self, waiting: Waiting, ready: list[Member]) -> Route | None:
        """A short uncached prompt costs a decode instance less than a transfer does. Of a replay
        its output so far is computed too."""
        least = self.options.min_remote_prefill_tokens
        if least <= 0:
            return None
        generation = waiting.generation
        decodes = [m for m in ready if m.role == "decode"]
        fits = [
            d
            for d in decodes
            if waiting.context_tokens - self.policy.cached_tokens(d, generation) < least
        ]
        if not fits:
            return None
        return Route((Stop(self.policy.pick(fits, generation, Phases.DECODE), Phases.BOTH),))


def _by_fingerprint(ready: list[Member]) -> dict[str, list[Member]]:
    """Decode instances by whose KV means the same to them. Hybrid ones have no migrator: they
    neither give KV nor take it."""
    found: dict[str, list[Member]] = {}
    for member in ready:
        if member.role == "decode" and member.fingerprint:
            found.setdefault(member.fingerprint, []).append(member)
    return found


def _able(ready: list[Member], decodes: dict[str, list[Member]]) -> list[Member]:
    """Prefill instances from which one of them can take over."""
    return [m for m in ready if m.role == "prefill" and m.fingerprint in decodes]


def _with_kin(prefills: list[Member], decodes: dict[str, list[Member]]) -> list[Member]:
    """Prefill instances with a decode instance of their own revision, else all: while a rollout
    runs, a revision that is still incomplete does not draw requests."""
    kinds = {kind_of(decode) for found in decodes.values() for decode in found}
    return [p for p in prefills if kind_of(p) in kinds] or prefills


def _partners(
    prefills: list[Member], decodes: dict[str, list[Member]], waiting: Waiting
) -> dict[Member, Partners]:
    """Of each prefill instance. Those of one kind have them together, so that many instances do
    not mean many times as many pairs to look at."""
    found: dict[tuple[str, str], Partners] = {}
    for prefill in prefills:
        if kind_of(prefill) not in found:
            able = preferring(decodes[prefill.fingerprint], waiting.avoid)
            found[kind_of(prefill)] = Partners(of_revision(prefill, able), waiting)
    return {prefill: found[kind_of(prefill)] for prefill in prefills}


def _missing(ready: list[Member]) -> str:
    for role in ("prefill", "decode"):
        if not any(m.role == role for m in ready):
            return f"no {role} instance is ready"
    return "no prefill and decode instance with equal fingerprints are ready"


make_router = DisaggregatedRouter
