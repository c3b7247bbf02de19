"""A series of runs against one server: warm up, then each (count, rate) in turn, kept as it ends.

The main loop of `distserve bench run`; everything it prints goes through `say`.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from distserve.bench.client import Client, Target, refused_as_it_was_asked
from distserve.bench.connections import open_session
from distserve.bench.errors import BenchError
from distserve.bench.openloop import offer
from distserve.bench.outcome import Outcome, Planned
from distserve.bench.plan import Recipe
from distserve.bench.progress import Progress
from distserve.bench.question import Pair
from distserve.bench.results import RunFiles, lost_its_server, next_attempt, trusted
from distserve.bench.resuming import Earlier, earlier_runs, with_shared_prompts

WARM_UP_AT_ONCE = 8
PATIENCE_SECONDS = 3.0
"""In which a server's first answers come; later than that it is said what is waited for."""
_HINTS = {
    "ignore_eos": "; try --no-ignore-eos",
    "cannot connect": "; start the server or correct --url",
    "HTTP 401": "; give a key with --api-key-env",
    "HTTP 404": "; correct --url or --model",
    "HTTP 3": "; give the address that it leads to as --url",
    "no event stream": "; correct --url, or give --no-stream to a server that cannot stream",
    "no JSON": "; correct --url",
    "without usage": "; leave out --no-stream: of a stream the tokens can be counted",
    "context length": "; give it as --max-model-len, which leaves out requests that are longer",
    "fewer tokens than asked": "; if the server passes over ignore_eos, give --no-ignore-eos",
}
"""What to do about the failure of the very first request, by what stands in it."""


@dataclass(frozen=True)
class Session:
    """What all runs of a series share."""

    target: Target
    recipe: Recipe
    pairs: Sequence[Pair]
    folder: Path
    prefix: str
    parameters: dict[str, Any]
    """What determines a run besides its pair; kept in its `.run.json`, compared on resuming."""
    exp_format: str = "distserve"
    warm_up_requests: int = 5
    max_lag_ms: float = 10.0


@dataclass(frozen=True)
class Ran:
    """A pair's result: what its `.run.json` says, and whether it stems from an earlier call."""

    pair: Pair
    about: dict[str, Any]
    kept: bool
    earlier_stays: bool = False
    """It was interrupted, and a complete run of before was left in its place."""

    @property
    def good(self) -> bool:
        return trusted(self.about)


async def run_series(session: Session, say: Callable[[str], None]) -> list[Ran]:
    """Raises BenchError where nothing can be measured; failed requests are counted instead.

    After a pair without a single completed request, and when cancelled, the rest is left out.
    """
    session.folder.mkdir(parents=True, exist_ok=True)
    if not os.access(session.folder, os.W_OK):  # found out now, not after the first run
        raise BenchError(f"{session.folder} cannot be written; give another --output-dir")
    asked = {pair.label: _parameters(session, pair) for pair in session.pairs}
    earlier = earlier_runs(session.folder, session.prefix, asked, session.max_lag_ms)
    wanted = [pair for pair in session.pairs if not _kept(earlier, pair)]
    for pair in wanted:
        session.recipe.check(pair)
    for line in _beforehand(session, asked, earlier, wanted):
        say(line)
    done: list[Ran] = []
    async with open_session(session.target.timeout_seconds) as http:
        client: Client | None = None
        for pair in session.pairs:
            left = earlier.get(pair.label)
            files = RunFiles(session.folder, session.prefix, pair.label)
            if left is not None and left.kept:
                left.keep()
                failed = ", failed requests too; delete it to have them asked again"
                say(
                    f"{files.exp} is there, made with the same parameters: kept"
                    f"{failed if left.about['failures'] else ''}"
                )
                _told(Ran(pair, left.about, kept=True), files, done, say)
                continue
            if client is None:
                with _said_when_late(session, say):
                    client = await warm_up(http, session, pair, say)
            attempt = next_attempt(left.about) if left else 1
            about = await _measured(session, pair, client, files, attempt)
            stays = not about["complete"] and files.complete_run() is not None
            _told(Ran(pair, about, False, stays), files, done, say)
            if not about["complete"] or not about["completed"]:
                break
    return done


def _kept(earlier: Mapping[str, Earlier], pair: Pair) -> bool:
    return pair.label in earlier and earlier[pair.label].kept


def _beforehand(
    session: Session,
    asked: Mapping[str, Mapping[str, Any]],
    earlier: Mapping[str, Earlier],
    wanted: Sequence[Pair],
) -> Iterator[str]:
    """What a user should know before anything is sent."""
    again = [earlier[pair.label] for pair in wanted if pair.label in earlier]
    for run in again:
        if why := run.made_anew:
            yield f"{run.files.exp}: {why}"
    if wanted and session.recipe.own_texts:
        if len(session.pairs) > 1:
            yield _texts_at_each_rate(session.recipe)
        elif again:
            yield (
                "the set's texts are sent again, and a prefix cache knows them: start the server "
                "anew, or switch its prefix cache off"
            )
    if shared := [path.name for path in with_shared_prompts(earlier, asked)]:
        yield (
            f"{', '.join(shared)}: made when all rates had the same prompts, which a prefix cache "
            "knows; delete the runs to have them made anew"
        )


async def _measured(
    session: Session, pair: Pair, client: Client, files: RunFiles, attempt: int
) -> dict[str, Any]:
    """A pair from its plan to its files. Its prompts, which may fill much of the memory, are made
    here and gone with it."""
    plan = session.recipe.plan(pair, attempt)
    title, last = f"{session.prefix} {pair.label}", plan[-1].at_seconds
    progress = Progress(title, pair.requests, last, sys.stderr)
    epoch = time.time() - time.perf_counter()
    observed = await offer(plan, client, progress.ended, progress.beat)
    progress.close()
    return files.write(
        observed,
        _parameters(session, pair),
        session.exp_format,
        epoch,
        session.max_lag_ms,
        attempt,
    )


async def warm_up(
    http: aiohttp.ClientSession, session: Session, pair: Pair, say: Callable[[str], None]
) -> Client:
    """The client to measure with: asks as much of the usage statistics as the server gives.

    Sends `warm_up_requests` that are not counted, at least one: whether the server answers is
    found out before the first measured request. Their lengths are those of the pair.
    """
    plan = session.recipe.warm_up(max(1, session.warm_up_requests), pair)
    client = Client(http, session.target)
    first = await _uncounted(client, plan[0])
    while first.failure is not None and refused_as_it_was_asked(first.failure):
        weaker = client.target.weaker()
        if weaker is None:
            break
        client = Client(http, weaker)
        first = await _uncounted(client, plan[0])
    if first.failure is not None:
        hint = next((hint for word, hint in _HINTS.items() if word in first.failure), "")
        raise BenchError(f"{session.target.shown}: {first.failure}{hint}")
    if client.target != session.target:
        say("the server gives no running usage: tokens are counted by events and the last usage")
    for start in range(1, len(plan), WARM_UP_AT_ONCE):
        group = plan[start : start + WARM_UP_AT_ONCE]
        await asyncio.gather(*(_uncounted(client, request) for request in group))
    return client


@contextmanager
def _said_when_late(session: Session, say: Callable[[str], None]) -> Iterator[None]:
    line = (
        f"waiting for {session.target.shown} to answer the requests that warm it up, up to "
        f"{session.target.timeout_seconds:g} s each (--timeout)"
    )
    later = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, say, line)
    try:
        yield
    finally:
        later.cancel()


async def _uncounted(client: Client, request: Planned) -> Outcome:
    body = client.target.body(request.prompt, request.output_tokens)
    return await client.send(request, body, time.perf_counter())


def _texts_at_each_rate(recipe: Recipe) -> str:
    seed = "" if recipe.arrivals.kind == "recorded" else " or with a --seed of its own"
    return (
        "the set's texts are sent again at each rate, and a prefix cache knows them: ask for one "
        f"rate at a time, the server started anew before each{seed}, or switch its cache off"
    )


def _told(ran: Ran, files: RunFiles, done: list[Ran], say: Callable[[str], None]) -> None:
    done.append(ran)
    for line in remarks(ran):
        say(f"{files.exp.name}: {line}")


def remarks(ran: Ran) -> Iterator[str]:
    """What a user should know of a run before believing it."""
    about = ran.about
    if not about["complete"]:
        stays = "; the earlier run stays" if ran.earlier_stays else ""
        yield f"interrupted after {about['requests']} of {ran.pair.requests} requests{stays}"
    for reason, count in sorted(about["failures"].items(), key=lambda item: -item[1]):
        yield f"{count} of {about['requests']} requests failed: {reason}"
    if about["completed"] and lost_its_server(about):
        yield "too many connections failed: the same command makes this run anew"
    if not about["valid"]:
        lag, at_once = about["lag"], about["parameters"]["request_distribution"] == "burst"
        less = "fewer at one instant" if at_once or ran.pair.rate == math.inf else "a lower rate"
        yield (
            f"INVALID: this client fell behind (p99 send lag {lag['send_p99_ms']:.1f} ms, event "
            f"loop {lag['loop_p99_ms']:.1f} ms, limit {about['max_lag_ms']:g} ms); use a quieter "
            f"machine or {less}, or allow more with --max-lag"
        )
    if off := about["prompts_off"]:
        yield (
            f"the server counts {off['requests']} of {about['requests']} prompts otherwise than "
            f"planned ({off['mean_tokens']:+.1f} tokens in the mean); kept is its count of texts, "
            "the plan's of token ids"
        )
    if not about["completed"]:
        yield "no request was completed; the remaining rates are left out"


def _parameters(session: Session, pair: Pair) -> dict[str, Any]:
    return {**session.parameters, **pair.parameters}
