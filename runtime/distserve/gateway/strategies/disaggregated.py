"""Disaggregated: a prefill instance and a decode instance that can take over its KV."""

from collections.abc import Sequence
from dataclasses import dataclass

from distserve.gateway.fleet import Fleet, Member
from distserve.gateway.generation import Generation
from distserve.gateway.pairing import Pairing
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


def exchange(prefill: Member, decode: Member) -> bool:
    """Whether KV of one means the same to the other."""
    return prefill.fingerprint == decode.fingerprint != ""


def of_revision(prefill: Member, decodes: list[Member]) -> list[Member]:
    """Of these, those that were made from the same spec, where there are any."""
    return [d for d in decodes if d.revision == prefill.revision] or decodes


@dataclass(frozen=True)
class DisaggregatedRouter:
    policy: Policy
    options: RoutingOptions

    def choose(self, waiting: Waiting, fleet: Fleet) -> Route | Wait:
        generation, avoid = waiting.generation, waiting.avoid
        ready = fitting(fleet.ready(), generation)
        pairs = _pairs(ready)
        if not pairs:
            return Wait(_missing(ready))
        if local := self._without_transfer(generation, preferring(ready, avoid)):
            return local
        prefills = preferring(_with_kin(pairs), avoid)
        if waiting.ends_at_first_token:
            prefill = self.policy.pick(prefills, generation, Phases.PREFILL)
            return Route((Stop(prefill, Phases.BOTH),))
        pairing = Pairing(generation)
        partners = {
            p: pairing.decodes(p, of_revision(p, preferring(pairs[p], avoid))) for p in prefills
        }
        prefill = self.policy.pick(pairing.prefills(partners), generation, Phases.PREFILL)
        decode = self.policy.pick(partners[prefill].members, generation, Phases.DECODE)
        return Route((Stop(prefill, Phases.PREFILL), Stop(decode, Phases.DECODE)))

    def order(self, waiting: Sequence[Waiting], fleet: Fleet) -> Sequence[Waiting]:
        return first_come(waiting, fleet)

    def complete(self, fleet: Fleet) -> bool:
        return bool(_pairs(fleet.ready()))

    def _without_transfer(self, generation: Generation, ready: list[Member]) -> Route | None:
        """A short uncached prompt costs a decode instance less than a transfer does."""
        least = self.options.min_remote_prefill_tokens
        if least <= 0:
            return None
        decodes = [m for m in ready if m.role == "decode"]
        fits = [
            d
            for d in decodes
            if generation.prompt_tokens - self.policy.cached_tokens(d, generation) < least
        ]
        if not fits:
            return None
        return Route((Stop(self.policy.pick(fits, generation, Phases.DECODE), Phases.BOTH),))


def _pairs(ready: list[Member]) -> dict[Member, list[Member]]:
    """Prefill instances, each with the decode instances that can take over from it. Hybrid ones
    have no migrator: they neither give KV nor take it."""
    decodes = [m for m in ready if m.role == "decode"]
    found = {p: [d for d in decodes if exchange(p, d)] for p in ready if p.role == "prefill"}
    return {p: partners for p, partners in found.items() if partners}


def _with_kin(pairs: dict[Member, list[Member]]) -> list[Member]:
    """Prefill instances with a decode instance of their own revision, else all: while a rollout
    runs, a revision that is still incomplete does not draw requests."""
    kin = [p for p, decodes in pairs.items() if any(d.revision == p.revision for d in decodes)]
    return kin or list(pairs)


def _missing(ready: list[Member]) -> str:
    for role in ("prefill", "decode"):
        if not any(m.role == role for m in ready):
            return f"no {role} instance is ready"
    return "no prefill and decode instance with equal fingerprints are ready"


make_router = DisaggregatedRouter
