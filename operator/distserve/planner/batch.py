"""A decode batch that advances many steps at once: the planner's unit of decoding.

All requests of a batch step together, so the batch needs one round counter and, per request, the
round in which it finishes; its context grows by one token per request and round. Every operation
costs O(requests that join or leave), none costs O(requests in the batch) except `split`.

        rounds = 7                due[request]: round in which it finishes
    members  [ r4 | r1 | r2 | r9 ]  queue order, finished requests are dropped lazily
    context of a request = base[request] + rounds
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from distserve.planner.errors import OversizedRequest

FINISHED = -1  # the `due` of a request that has left; members forget it when they meet it


class DecodeBatch:
    """Requests that decode together. `due` and `base` are shared by the batches of a simulation."""

    __slots__ = ("base", "context_tokens", "due", "finishing", "members", "rounds", "size")

    def __init__(self, due: list[int], base: list[int]) -> None:
        self.due = due
        self.base = base
        self.size = 0
        self.context_tokens = 0
        self.rounds = 0
        self.finishing: list[tuple[int, int]] = []
        self.members: deque[int] = deque()

    def join(self, request: int, context_tokens: int, steps: int) -> None:
        """Append a request that holds `context_tokens` and needs `steps` more rounds."""
        self._account(request, context_tokens, steps)
        self.members.append(request)

    def join_ahead(self, requests: Iterable[tuple[int, int, int]]) -> None:
        """Put (request, context, steps) in front of those that are here, in the given order."""
        newcomers = []
        for request, context_tokens, steps in requests:
            self._account(request, context_tokens, steps)
            newcomers.append(request)
        self.members.extendleft(reversed(newcomers))

    def _account(self, request: int, context_tokens: int, steps: int) -> None:
        self.due[request] = self.rounds + steps
        self.base[request] = context_tokens - self.rounds
        heappush(self.finishing, (self.rounds + steps, request))
        self.size += 1
        self.context_tokens += context_tokens

    @property
    def rounds_to_next_finish(self) -> int:
        return self.finishing[0][0] - self.rounds

    @property
    def padding_tokens(self) -> int:
        """By which all contexts together are shorter than if each were as long as the longest; it
        stays the same while nobody joins or leaves."""
        due, base = self.due, self.base
        longest = max((base[r] for r in self.members if due[r] != FINISHED), default=0)
        return self.size * (longest + self.rounds) - self.context_tokens

    def advance(self, rounds: int) -> list[int]:
        """Decode `rounds` tokens for every request; returns those that finish, which leave."""
        self.rounds += rounds
        self.context_tokens += rounds * self.size
        finishing = self.finishing
        finished = []
        while finishing and finishing[0][0] <= self.rounds:
            _, request = heappop(finishing)
            self.context_tokens -= self.base[request] + self.rounds
            self.due[request] = FINISHED
            finished.append(request)
        self.size -= len(finished)
        return finished

    def absorb(self, other: DecodeBatch) -> None:
        """Append another batch's requests behind these; the other must not be used afterwards."""
        if other.size > self.size:
            # Shift the smaller side's round numbers, keep the queue order: self, then other.
            other.members.extendleft(reversed(self.members))
            larger, smaller = other, self
        else:
            self.members.extend(other.members)
            larger, smaller = self, other
        shift = larger.rounds - smaller.rounds
        due, base, finishing = self.due, self.base, larger.finishing
        for finish_round, request in smaller.finishing:
            due[request] = finish_round + shift
            base[request] -= shift
            heappush(finishing, (finish_round + shift, request))
        self.context_tokens += other.context_tokens
        self.size += other.size
        self.rounds = larger.rounds
        self.finishing = finishing
        self.members = larger.members

    def split(self, step_tokens: int) -> DecodeBatch:
        """Take from the front all requests that one step of at most `step_tokens` can hold.

        A request costs its context and the token it adds. Those that stay keep their order.
        """
        due, base, rounds = self.due, self.base, self.rounds
        taken = DecodeBatch(due, base)
        taken.rounds = rounds
        room = step_tokens
        members = self.members
        while members:
            request = members[0]
            if due[request] == FINISHED:
                members.popleft()
                continue
            cost = base[request] + rounds + 1
            if cost > room:
                break
            room -= cost
            taken.members.append(members.popleft())
            taken.finishing.append((due[request], request))
            taken.context_tokens += cost - 1
        if not taken.members:
            raise OversizedRequest(
                f"a context of {cost} tokens exceeds the {step_tokens} tokens of one decode step; "
                "leave such requests out"
            )
        heapify(taken.finishing)
        taken.size = len(taken.members)
        self.finishing = [
            (due[request], request) for request in members if due[request] != FINISHED
        ]
        heapify(self.finishing)
        self.size -= taken.size
        self.context_tokens -= taken.context_tokens
        return taken
