"""Runs a generation to its end: over a route, over another one, as a replay.

    dispatch --> one leg (both phases) ----------------> finished
             `-> handover: prefill leg, decode leg ----> finished
                    `-- failed --> nothing out yet: another route
                               `-> tokens are out:  each choice is replayed

A replay sends what the client already has as `prior`. Sampling noise depends on (seed, choice,
position) alone, so the text goes on as if nothing had happened. The last token is not among them:
it is made once more and dropped, because the choice may have ended with it. Where another one is
made the leg is given up, and the next one begins with all that the client has.
"""

import asyncio
import logging
from dataclasses import dataclass, replace

from distserve.gateway.dispatch import RETRY_AFTER_SECONDS, Dispatched, Dispatcher
from distserve.gateway.errors import (
    BadRequest,
    DeadlineExceeded,
    EngineFailed,
    GatewayError,
    NoRoute,
)
from distserve.gateway.handover import Handover
from distserve.gateway.janitor import Janitor
from distserve.gateway.job import Job
from distserve.gateway.legs import LegDeclined, LegFailed, LegRunner, Progressing
from distserve.gateway.stages import LegReport, StageRecorder
from distserve.wire.dialect import Handoff

log = logging.getLogger(__name__)

MAX_FAILURES = 8
MAX_IN_VAIN = 3
MAX_REFUSALS = 8
PAUSE_SECONDS = 0.05
MAX_PAUSE_SECONDS = 1.0
CLIENT_MISTAKES = frozenset({400, 413, 422})


@dataclass(frozen=True)
class Patience:
    """How much may still go wrong with a request before its client is told. A long stream outlives
    the restarts of a rollout; a request that breaks whatever runs it does not go through them all.
    """

    failures: int = MAX_FAILURES
    in_vain: int = MAX_IN_VAIN
    """Failures between which no token came."""
    refusals: int = MAX_REFUSALS
    """Legs that instances declined, or ended since they take nothing, between which no token came.
    So a stream may be moved as often as its time allows: each move has to bring it on."""

    def after(self, *, refused: bool, grew: bool) -> "Patience":
        failures = self.failures if refused else self.failures - 1
        if grew:
            return Patience(failures)
        if refused:
            return replace(self, refusals=self.refusals - 1)
        return replace(self, failures=failures, in_vain=self.in_vain - 1)

    @property
    def attempts(self) -> int:
        return min(self.failures, self.in_vain, self.refusals)

    @property
    def pause_seconds(self) -> float:
        """Longer each time: what fails at once should not use up all of it in a moment."""
        spent = (MAX_IN_VAIN - self.in_vain) + (MAX_REFUSALS - self.refusals)
        return min(PAUSE_SECONDS * 2.0**spent, MAX_PAUSE_SECONDS)


@dataclass(frozen=True)
class Runner:
    dispatcher: Dispatcher
    legs: LegRunner
    janitor: Janitor
    stages: StageRecorder

    async def run(self, job: Job) -> None:
        """Until every choice is finished. Raises GatewayError."""
        await self._finish(job, job.progress.unfinished, Patience(), frozenset())
        self.stages.record_prompt(job.arrived, job.reports)

    async def _finish(
        self, job: Job, choices: list[int], patience: Patience, avoid: frozenset[str]
    ) -> None:
        while choices:
            tokens = job.tokens_out(choices)
            try:
                await self._attempt(job, choices, avoid)
                return
            except LegDeclined as declined:
                patience = patience.after(refused=True, grew=False)
                if patience.attempts == 0:
                    told = "every instance declined: try again later"
                    raise NoRoute(told, retry_after_seconds=RETRY_AFTER_SECONDS) from declined
                declined.member.observe(declined.state)
                avoid |= {declined.member.name}
            except LegFailed as failure:
                grew = job.tokens_out(choices) > tokens
                patience = patience.after(refused=failure.is_refusal, grew=grew)
                log.warning("leg failed, %d attempts left: %s", patience.attempts, failure)
                if not failure.retryable or patience.attempts == 0:
                    raise as_error(failure) from failure
                # Who failed before the text went on may be well again by now.
                avoid = failure.suspects if grew else avoid | failure.suspects
                await asyncio.sleep(patience.pause_seconds)
            choices = job.unfinished(choices)
            job.begin_replay(choices)
            if len(choices) > 1 and job.progress.started:
                return await self._each(job, choices, patience, avoid)

    async def _each(
        self, job: Job, choices: list[int], patience: Patience, avoid: frozenset[str]
    ) -> None:
        """Choices differ in how far they are, so each is replayed by itself."""
        try:
            async with asyncio.TaskGroup() as group:
                for choice in choices:
                    group.create_task(self._finish(job, [choice], patience, avoid))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _attempt(self, job: Job, choices: list[int], avoid: frozenset[str]) -> None:
        prior_tokens = len(job.prior(choices))
        dispatched = await self.dispatcher.dispatch(
            job.generation, len(choices), avoid, prior_tokens, job.fingerprint
        )
        with dispatched:
            if len(dispatched.stops) == 1:
                reports = await self._in_one_place(job, choices, dispatched)
            else:
                handover = Handover(job, choices, dispatched, self.legs, self.janitor)
                reports = await handover.run()
        self.stages.record_attempt(reports)
        if left := job.unfinished(choices):
            raise LegFailed(
                dispatched.stops[-1][0].member,
                f"the leg ended before choices {left} did",
                retryable=True,
                status=502,
                answered=True,
            )
        job.reports[:] = reports

    async def _in_one_place(
        self, job: Job, choices: list[int], taken: Dispatched
    ) -> list[LegReport]:
        def on_event(event: Progressing) -> None:
            if not isinstance(event, Handoff):
                job.progress.accept(event)

        ((stop, flight),) = taken.stops
        leg = job.leg(stop, flight, choices, job.prior(choices))
        return [await job.run_leg(self.legs, stop, flight, leg, on_event)]


def as_error(failure: LegFailed) -> GatewayError:
    """What the client hears when no attempt is left."""
    if not failure.retryable and failure.status in CLIENT_MISTAKES:
        return BadRequest(failure.message)
    told = f"the request could not be completed: {failure.message}"
    if failure.status == NoRoute.status:
        return NoRoute(f"{told}: try again later", retry_after_seconds=RETRY_AFTER_SECONDS)
    if failure.status == DeadlineExceeded.status:
        return DeadlineExceeded(told)
    return EngineFailed(told)
