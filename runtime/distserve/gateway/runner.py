"""Runs a generation over its route: hand-over from prefill to decode, other routes, replays.

    dispatch --> one leg (both phases) -------------------------------> finished
             `-> prefill leg --handoff--> decode leg -----------------> finished
                    |                        |
                    `-- failed --------------+--> nothing out yet: another route
                                             `--> tokens are out:  each choice is replayed

A replay sends what the client already has as `prior`. Sampling noise depends on (seed, choice,
position) alone, so the text goes on as if nothing had happened.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from distserve.gateway.dispatch import Dispatched, Dispatcher
from distserve.gateway.errors import BadRequest, EngineFailed, GatewayError
from distserve.gateway.fleet import Flight, Member
from distserve.gateway.generation import Generation, Progress
from distserve.gateway.janitor import Janitor
from distserve.gateway.legs import LegDeclined, LegFailed, LegRunner, Progressing
from distserve.gateway.routing import Stop
from distserve.gateway.stages import LegReport, StageRecorder
from distserve.wire.dialect import Handoff, Leg, Phases, Source
from distserve.wire.ids import new_transfer
from distserve.wire.tracing import Span

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
MAX_DECLINES = 8
PAUSE_SECONDS = 0.05
LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class Job:
    """A generation, what came of it, and until when it may take."""

    generation: Generation
    progress: Progress
    deadline: float
    """Of the event loop's clock."""
    span: Span

    def headers(self, span: Span) -> dict[str, str]:
        return {"x-request-id": self.generation.request_id, **span.headers()}

    def leg(
        self, stop: Stop, flight: Flight, choices: Sequence[int], **fields: str | Source | None
    ) -> Leg:
        generation, sampling = self.generation, self.generation.sampling
        if self.progress.scored or stop.phases is Phases.DECODE:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        remaining = self.deadline - asyncio.get_running_loop().time()
        return Leg(
            id=flight.leg,
            request_id=generation.request_id,
            phases=stop.phases,
            prompt=generation.prompt,
            sampling=sampling,
            choices=list(choices),
            prior=list(self.progress.choices[choices[0]].tokens) if len(choices) == 1 else [],
            salt=generation.salt,
            slo=generation.slo,
            only_if=stop.only_if,
            timeout_ms=max(1.0, remaining * 1000),
            **fields,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Runner:
    dispatcher: Dispatcher
    legs: LegRunner
    janitor: Janitor
    stages: StageRecorder

    async def run(self, job: Job) -> None:
        """Until every choice is finished. Raises GatewayError."""
        await self._finish(job, job.progress.unfinished, MAX_ATTEMPTS, frozenset())

    async def _finish(
        self, job: Job, choices: list[int], attempts: int, avoid: frozenset[str]
    ) -> None:
        declines = 0
        while choices:
            try:
                await self._attempt(job, choices, avoid)
                return
            except LegDeclined as declined:
                declines += 1
                if declines > MAX_DECLINES:
                    raise EngineFailed("every instance declined", status=503) from declined
                declined.member.observe(declined.state)
                avoid |= {declined.member.name}
            except LegFailed as failure:
                attempts -= 1
                log.warning("leg failed, %d attempts left: %s", attempts, failure)
                if not failure.retryable or attempts == 0:
                    raise as_error(failure) from failure
                avoid |= failure.suspects
                await asyncio.sleep(PAUSE_SECONDS * 2 ** (MAX_ATTEMPTS - attempts))
            unfinished = [c for c in choices if c in job.progress.unfinished]
            if len(unfinished) > 1 and job.progress.started:
                await self._each(job, unfinished, attempts, avoid)
                return
            choices = unfinished
            for choice in choices:
                job.progress.forget_early(choice)

    async def _each(
        self, job: Job, choices: list[int], attempts: int, avoid: frozenset[str]
    ) -> None:
        """Choices differ in how far they are, so each is replayed by itself."""
        for choice in choices:
            job.progress.forget_early(choice)
        try:
            async with asyncio.TaskGroup() as group:
                for choice in choices:
                    group.create_task(self._finish(job, [choice], attempts, avoid))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _attempt(self, job: Job, choices: list[int], avoid: frozenset[str]) -> None:
        dispatched = await self.dispatcher.dispatch(job.generation, avoid)
        with dispatched:
            if len(dispatched.stops) == 1:
                await self._in_one_place(job, choices, dispatched)
            else:
                await self._migrating(job, choices, dispatched)
        left = [c for c in choices if c in job.progress.unfinished]
        if left:
            raise LegFailed(
                dispatched.stops[-1][0].member,
                f"the leg ended before choices {left} did",
                retryable=True,
                status=502,
                answered=True,
            )

    async def _in_one_place(self, job: Job, choices: list[int], taken: Dispatched) -> None:
        ((stop, flight),) = taken.stops

        def on_event(event: Progressing) -> None:
            if not isinstance(event, Handoff):
                job.progress.accept(event)

        with job.span.child(f"leg {stop.phases}", instance=stop.member.name) as span:
            leg = job.leg(stop, flight, choices)
            begun = time.monotonic()
            end = await self.legs.run(flight, leg, job.headers(span), on_event)
        self.stages.record([LegReport(begun, end)])

    async def _migrating(self, job: Job, choices: list[int], taken: Dispatched) -> None:
        """Never joined on the prefill's end: the client has its first token, and the decode leg
        is open, as soon as there is something to send."""
        (prefill_stop, prefill_flight), (decode_stop, decode_flight) = taken.stops
        transfer = new_transfer()
        source: asyncio.Future[Source] = asyncio.get_running_loop().create_future()
        had = {c: len(job.progress.choices[c].tokens) for c in choices}

        def on_event(event: Progressing) -> None:
            if not isinstance(event, Handoff):
                job.progress.accept(event)
            elif not source.done():
                source.set_result(event.source)

        def has_first_tokens() -> bool:
            states = job.progress.choices
            return all(states[c].finished or len(states[c].tokens) > had[c] for c in choices)

        def unfinished() -> bool:
            return any(c in job.progress.unfinished for c in choices)

        async def run_leg(stop: Stop, flight: Flight, leg: Leg) -> LegReport:
            with job.span.child(f"leg {stop.phases}", instance=stop.member.name) as span:
                begun = time.monotonic()
                end = await self.legs.run(flight, leg, job.headers(span), on_event)
                return LegReport(begun, end)

        prefill_leg = job.leg(prefill_stop, prefill_flight, choices, transfer=transfer)
        prefill = asyncio.create_task(run_leg(prefill_stop, prefill_flight, prefill_leg))
        decode: asyncio.Task[LegReport] | None = None
        fetched = False
        try:
            first: set[asyncio.Future[Any]] = {prefill, source}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not source.done() or not unfinished():
                self.stages.record([await prefill])
                return
            decode_leg = job.leg(decode_stop, decode_flight, choices, source=source.result())
            # Both legs continue from the same place, whatever came in between.
            decode_leg = msgspec.structs.replace(decode_leg, prior=prefill_leg.prior)
            decode = asyncio.create_task(run_leg(decode_stop, decode_flight, decode_leg))
            while not decode.done():
                if prefill.done():
                    lost = prefill.exception() is not None and not has_first_tokens()
                    if lost or not unfinished():
                        break
                running = {decode} if prefill.done() else {decode, prefill}
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if decode.done():
                report = _taken_over(decode, prefill_stop.member)
                fetched = True
                if not prefill.done():
                    await asyncio.wait({prefill}, timeout=LAST_WORDS_SECONDS)
                self.stages.record([*_reports(prefill), report])
            else:
                self.stages.record([prefill.result()])
        finally:
            tasks = {task for task in (prefill, decode) if task is not None}
            for task in tasks:
                task.cancel()
            if not fetched:
                # Even if the hand-off was not seen: the instance may have made the offer.
                self.janitor.release(prefill_stop.member, transfer)
            await asyncio.gather(*tasks, return_exceptions=True)


def _taken_over(decode: asyncio.Task[LegReport], prefill: Member) -> LegReport:
    """A decode instance that reports a failure may have been let down by its source."""
    try:
        return decode.result()
    except LegFailed as failure:
        if failure.answered:
            failure.suspects |= {prefill.name}
        raise


def _reports(task: asyncio.Task[LegReport]) -> list[LegReport]:
    if task.done() and not task.cancelled() and task.exception() is None:
        return [task.result()]
    return []


def as_error(failure: LegFailed) -> GatewayError:
    """What the client hears when no attempt is left."""
    if not failure.retryable and 400 <= failure.status < 500:
        return BadRequest(failure.message, status=failure.status)
    return EngineFailed(
        f"the request could not be completed: {failure.message}",
        status=failure.status if failure.status in {503, 504} else None,
    )
