"""Offers requests to the deployment and watches: a run at a rate, and the capacity."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import uvloop
from benchmarks.planner_truth.deployment import MAX_NUM_SEQS, Failed
from benchmarks.planner_truth.figures import STAGES, Request

from distserve.bench.client import Client, Target
from distserve.bench.connections import open_session
from distserve.bench.openloop import Observed, offer
from distserve.bench.outcome import Outcome, Planned
from distserve.bench.plan import Recipe
from distserve.bench.question import Pair
from distserve.bench.synthetic import synthetic
from distserve.planner.loads import LoadRecord, decoded
from distserve.profile import loads
from distserve.profile.asking import asking
from distserve.profile.database import Loaded
from distserve.profile.errors import ProfileError
from distserve.workload import ArrivalProcess

LENGTHS = "lognormal,prompt=128/256,output=32/64,limit=640"
MEAN_PROMPT_TOKENS, MEAN_OUTPUT_TOKENS = 128, 32
POPULATION = 16_000
RUNS_SEED, LOADS_SEED = 0, 1
"""Loads are of the same distribution, and of other requests."""
_OVERLOADS = 3
"""A machine's fast minute is not its capacity."""
_LOAD_SECONDS = 10.0
_OVERLOAD, _LONGER, _LEAST = 1.2, 1.5, 288
"""Times what clients get who ask for as many requests at once as are decoded, for times the seconds
of a run, and so many requests at least: an instance that does both goes round, from a full batch's
prefills to its last tokens. Not more: requests that come cost the core of those who decode."""
_KEEPS_UP, _TRIES = 0.95, 4
"""What serves such a share of all that comes is not overloaded: then more is sent, so often."""
_FILLED = 0.4
"""Share of the overload's time after which the deployment serves evenly."""
_STEADY = 0.2, 0.8
"""Shares of the requests of a load that have ended when its steady part begins and ends."""


def plan_of(requests: int, rate: float, seed: int, lengths: str = LENGTHS) -> list[Planned]:
    """A seed's prompts are its own: what another run left in the prefix cache is of no use."""
    arrivals = ArrivalProcess("poisson", seed=seed)
    return Recipe(synthetic(lengths, POPULATION, RUNS_SEED), arrivals, seed).plan(
        Pair(requests, rate)
    )


def with_other_prompts(plan: Sequence[Planned]) -> list[Planned]:
    """The same lengths at the same instants. No block of tokens is another's, each begins later."""
    return [replace(one, prompt=[*one.prompt[1:], *one.prompt[:1]]) for one in plan]


def steady_rate(ends: Sequence[float]) -> float:
    """Ends in a unit of their time, without a load's beginning and end."""
    ordered = sorted(ends)
    first, last = (round(share * (len(ordered) - 1)) for share in _STEADY)
    return (last - first) / (ordered[last] - ordered[first])


def rate_meanwhile(ends: Sequence[float], lasting: float) -> float:
    """Ends in a unit of their time, counted from the first arrival, while more came than could be
    served for `lasting`."""
    begun = _FILLED * lasting
    return sum(begun < end <= lasting for end in ends) / (lasting - begun)


def load_of(url: str, model: str, clients: Sequence[int], seed: int) -> list[LoadRecord]:
    """As `distserve profile serving --dataset` measures them, one round."""
    rows: list[Loaded] = []
    lengths = loads.as_in(synthetic(LENGTHS, POPULATION, LOADS_SEED))

    async def measured() -> None:
        async with asking(Target(url, model)) as asker:
            if not await loads.measure(
                asker, rows.append, clients, 1, _LOAD_SECONDS, seed, lengths
            ):
                raise Failed("the gateway does not tell its requests' stages")

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measured())
    except ProfileError as error:
        raise Failed(str(error)) from error
    return [LoadRecord(1, row.clients, decoded(row.requests)) for row in rows]


def load_like(observed: Observed) -> LoadRecord:
    """A run, as loads are told."""
    begun = min(outcome.sent for outcome in observed.outcomes)
    told = [loads.told(outcome, begun) for outcome in observed.outcomes if outcome.token_times]
    return LoadRecord(1, 0, [request for request in told if request is not None])


def overloaded(url: str, model: str, seconds: float) -> tuple[list[list[Planned]], float]:
    """Plans of a little more than the deployment serves, and the requests a second that it does, in
    the mean of them. It is full from the first moment."""
    (load,) = load_of(url, model, (MAX_NUM_SEQS,), 901)
    one_after_another = load.requests[: len(load.requests) // 2]
    rate = steady_rate([request.last_ms / 1000 for request in one_after_another])
    for _ in range(_TRIES):
        rate *= _OVERLOAD
        requests = max(_LEAST, round(_LONGER * seconds * rate))
        plans = [plan_of(requests, rate, 902 + nth) for nth in range(_OVERLOADS)]
        plans = [[*_at_once(plan[:MAX_NUM_SEQS]), *plan[MAX_NUM_SEQS:]] for plan in plans]
        served = [_served(url, model, plan) for plan in plans]
        if max(served) < _KEEPS_UP * rate:
            return plans, fmean(served)
    raise Failed(f"it keeps up with {rate:.1f} requests/s; its capacity is not known")


def _at_once(plan: Sequence[Planned]) -> list[Planned]:
    return [replace(one, at_seconds=0.0) for one in plan]


def _served(url: str, model: str, overload: Sequence[Planned]) -> float:
    outcomes = offered(url, model, overload).outcomes
    begun = min(outcome.sent for outcome in outcomes)
    return rate_meanwhile([o.ended - begun for o in outcomes], overload[-1].at_seconds)


def offered(url: str, model: str, plan: Sequence[Planned]) -> Observed:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_offered(url, model, plan))


async def _offered(url: str, model: str, plan: Sequence[Planned]) -> Observed:
    target = Target(url, model)
    async with open_session(target.timeout_seconds) as http:
        client = Client(http, target)
        for request in plan[:3]:
            assert not isinstance(request.prompt, str)
            body = client.target.body(request.prompt[::-1], request.output_tokens)
            await client.send(request, body, time.perf_counter())
        observed = await offer(plan, client)
    failures = {o.failure for o in observed.outcomes if o.failure}
    if failures:
        raise Failed(f"requests failed: {failures}")
    return observed


def requests_of(observed: Observed) -> list[Request]:
    return [
        Request(
            round(1000 * (outcome.ttft or 0.0), 3),
            round(1000 * (outcome.tpot or 0.0), 4),
            stages(outcome),
        )
        for outcome in observed.outcomes
    ]


def stages(outcome: Outcome) -> dict[str, float]:
    """By what the gateway told. Its clock begins when it has the request; the simulator counts the
    whole way from the client and back as queueing."""
    at = outcome.lifecycle or {}
    if not {"context_begin", "context_end", "decoding_end"} <= at.keys():
        return {}
    ready = at.get("migration_end", at["context_end"])
    instants = (0.0, at["context_begin"], at["context_end"], ready, at["decoding_end"])
    pairs = pairwise(instants)
    return {stage: 1000 * (end - begin) for stage, (begin, end) in zip(STAGES, pairs, strict=True)}
