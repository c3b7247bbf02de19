"""Measures a deployment under load: clients that each send one request after another, and then
requests that come whenever they come.

With one client nothing meets; with more of them prefills, hand-overs and decode steps pass beside
each other, in all proportions. But who waits for an answer sends soon after another has ended, and
a request costs those who decode less so than where users' come, at any moment: so half of a load is
of such. What is kept is each request's instants: the planner explains them
(`distserve.planner.load_fit`).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter

from distserve.bench.outcome import Outcome
from distserve.planner.loads import LoadRequest, encoded
from distserve.profile.asking import Asker, within
from distserve.profile.database import Loaded
from distserve.profile.errors import ProfileError
from distserve.workload import RequestSet

CLIENTS = (1, 2, 4, 8, 16, 32)
ROUNDS, SECONDS = 3, 4.0
"""Over all of these, so that none has a machine's slow minute alone; and of each load. What was
sent by then is answered to its end."""
PROMPT_TOKENS, OUTPUT_TOKENS = (32, 512), (16, 96)
"""Lengths are drawn between these, each order of magnitude as often as another, where nobody says
which ones users send."""
LONGEST = PROMPT_TOKENS[1] + OUTPUT_TOKENS[1]
LEAST_REQUESTS = 2
"""Of each client: where an answer takes as long as a load, all would come at once, and no prefill
pass beside the others' tokens."""
PAUSE_SECONDS = 0.1
"""At most, before a client's next request: else all would come when a step has just begun."""
UNTOLD = 0.05
"""Share of requests whose stages may be missing: who is not known to have been there spoils the
others' times."""

Lengths = Callable[[random.Random], tuple[int, int]]
"""Draws a request's prompt and output, in tokens."""


@dataclass
class _Load:
    """What has been answered so far."""

    clients: int
    begun: float
    draw: random.Random
    """Of lengths; the same requests each time."""
    lengths: Lengths
    answered: int = 0
    told: list[LoadRequest] = field(default_factory=list)

    def hear(self, outcome: Outcome) -> None:
        self.answered += 1
        request = told(outcome, self.begun)
        if request is not None:
            self.told.append(request)


async def measure(
    asker: Asker,
    add: Callable[[Loaded], None],
    clients: Sequence[int] | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    lengths: Lengths | None = None,
) -> bool:
    """Whether the server tells its requests' stages: else nothing can be measured so. `seed`: of
    their `lengths`. Raises ProfileError where it does not answer as it should, or has several
    instances of a role."""
    if told((await asker.ask([1], 2))[0], 0.0) is None:
        return False
    several = [role for role, count in (await asker.instances()).items() if count > 1]
    if several:
        raise ProfileError(
            f"several {several[0]} instances: clients are not told which of them has a request; "
            "measure a deployment with one unit and one instance of each role"
        )
    for nth in range(rounds or ROUNDS):
        for count in clients or CLIENTS:
            draw = random.Random(f"{seed} {nth} {count}")
            load = _Load(count, perf_counter(), draw, lengths or usual())
            await _pass(asker, load, seconds or SECONDS)
            told_by_then = sorted(load.told, key=lambda request: request.sent_ms)
            add(Loaded(count, nth, encoded(told_by_then)))
    return True


async def _pass(asker: Asker, load: _Load, seconds: float) -> None:
    if load.clients == 1:
        await _one_after_another(asker, load, seconds)
    else:
        await _one_after_another(asker, load, seconds / 2)
        await _whenever_they_come(asker, load)
    if len(load.told) < (1 - UNTOLD) * load.answered:
        raise ProfileError(
            f"of {load.answered} requests the server told the stages of {len(load.told)} in "
            f"time; is it too busy with {load.clients} clients?"
        )


async def _one_after_another(asker: Asker, load: _Load, seconds: float) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(load.clients):
                group.create_task(_client(asker, load, seconds))
    except ExceptionGroup as errors:  # the others were cancelled
        raise errors.exceptions[0] from errors


async def _whenever_they_come(asker: Asker, load: _Load) -> None:
    """As many again as were answered, and in the mean as often: so they are served, too."""
    rate = load.answered / (perf_counter() - load.begun)
    count = range(load.answered)
    instants = list(accumulate(load.draw.expovariate(rate) for _ in count))
    for outcome in await asker.offer(instants, [load.lengths(load.draw) for _ in count]):
        load.hear(outcome)


async def _client(asker: Asker, load: _Load, seconds: float) -> None:
    sent = 0
    while sent < LEAST_REQUESTS or perf_counter() - load.begun < seconds:
        sent += 1
        prompt, output = load.lengths(load.draw)
        (outcome,) = await asker.ask([prompt], output)
        load.hear(outcome)
        await asyncio.sleep(load.draw.uniform(0, PAUSE_SECONDS))


def usual(most: int | None = None) -> Lengths:
    """Of requests that have at most `most` tokens together."""
    (prompt,), output = within(most, [PROMPT_TOKENS[1]], OUTPUT_TOKENS[1])
    spans = [(min(PROMPT_TOKENS[0], prompt), prompt), (min(OUTPUT_TOKENS[0], output), output)]

    def draw(source: random.Random) -> tuple[int, int]:
        (prompt, output) = (_between(source, *span) for span in spans)
        return prompt, output

    return draw


def as_in(requests: RequestSet) -> Lengths:
    """Those of requests of a set."""

    def draw(source: random.Random) -> tuple[int, int]:
        nth = source.randrange(len(requests.prompt_tokens))
        return requests.prompt_tokens[nth], requests.output_tokens[nth]

    return draw


def _between(draw: random.Random, least: int, most: int) -> int:
    return round(math.exp(draw.uniform(math.log(least), math.log(most))))


def told(outcome: Outcome, begun: float) -> LoadRequest | None:
    """None where the server tells no stages. `begun`: of the load, on the client's clock."""
    at = outcome.lifecycle or {}
    if not {"context_begin", "context_end"} <= at.keys():
        return None

    def ms(instant: float) -> float:
        return round(1000 * (instant - begun), 3)

    ready = at.get("migration_end")
    return LoadRequest(
        input_tokens=outcome.prompt_tokens,
        sent_ms=ms(outcome.sent),
        prefill_ms=ms(outcome.sent + at["context_begin"]),
        prefilled_ms=ms(outcome.sent + at["context_end"]),
        ready_ms=None if ready is None else ms(outcome.sent + ready),
        token_ms=tuple(map(ms, outcome.token_times)),
    )
