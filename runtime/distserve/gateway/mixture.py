"""Instances of two strategies behind one gateway, while a rollout moves units to another one.

    units           former            new
    routers   [prefill, decode]      [both]     each of them sees its own roles alone
                           '- the emptier route -'

Which strategies there are instances of is what discovery says: a gateway that was told the new one
serves with the former one's instances until the last of them is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from distserve.gateway.fleet import Fleet, Member
from distserve.gateway.routing import Route, Router, Wait, Waiting


@dataclass(frozen=True)
class Mixture:
    routers: tuple[Router, ...]
    """That of the gateway's own strategy first: what that one lacks is told."""

    def choose(self, waiting: Waiting, members: list[Member]) -> Route | Wait:
        answers = [router.choose(waiting, members) for router in self.routers]
        routes = [answer for answer in answers if isinstance(answer, Route)]
        if not routes:
            return answers[0]
        batch = max(_step_tokens(route) for route in routes)
        return min(routes, key=lambda route: (_failed_before(route, waiting), burden(route, batch)))

    def order(self, waiting: Sequence[Waiting], fleet: Fleet) -> Sequence[Waiting]:
        return self.routers[0].order(waiting, fleet)

    def complete(self, ready: list[Member]) -> bool:
        return any(router.complete(ready) for router in self.routers)


def burden(route: Route, batch: int) -> float:
    """How much there is to do on a route, so that routes of any strategy compare: batches of
    prompts before its prefill, and the share that is taken of the instance where it decodes.
    `batch` in tokens is one for all: by its own steps an engine with small ones would seem full."""
    prefill, decode = route.stops[0].member, route.stops[-1].member
    return prefill.outstanding_tokens / batch + _taken(decode)


def _step_tokens(route: Route) -> int:
    info = route.stops[0].member.info
    return max(1, info.max_num_batched_tokens) if info else 1


def _taken(member: Member) -> float:
    """Of its seats or of its blocks, whichever are scarcer. Over 1.0 requests wait."""
    if member.info is None:
        return 0.0
    seats = member.seats / max(1, member.info.max_num_seqs)
    return max(seats, 1.0 - member.spare_blocks / max(1, member.info.total_blocks))


def _failed_before(route: Route, waiting: Waiting) -> bool:
    return any(stop.member.name in waiting.avoid for stop in route.stops)
