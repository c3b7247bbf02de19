"""A prefill leg and a decode leg, joined by a transfer of KV.

    prefill leg   |--- handoff --- tokens[first] -- end
    decode leg             `-------(KV)--------------- tokens ... -- end

Never joined on the prefill's end: the decode leg is open, and the client has its first token, as
soon as there is something to send.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from distserve.gateway.dispatch import Dispatched
from distserve.gateway.fleet import Member, handover_succeeded
from distserve.gateway.janitor import Janitor
from distserve.gateway.job import Job
from distserve.gateway.legs import LegFailed, LegRunner, Progressing
from distserve.gateway.stages import LegReport
from distserve.wire.dialect import Handoff, Source, Token
from distserve.wire.ids import new_transfer

LAST_WORDS_SECONDS = 1.0


@dataclass(eq=False)
class Handover:
    """One attempt at choices of a job. Runs inside its dispatch."""

    job: Job
    choices: list[int]
    taken: Dispatched
    legs: LegRunner
    janitor: Janitor
    _transfer: str = field(default_factory=new_transfer)

    def __post_init__(self) -> None:
        self._prior = self.job.prior(self.choices)
        self._without_first = set(self.choices)
        """Choices whose first token the prefill leg still owes."""
        self._decodes = False
        """The decode leg has its KV."""
        self._source: asyncio.Future[Source] = asyncio.get_running_loop().create_future()

    async def run(self) -> list[LegReport]:
        """Raises LegFailed or LegDeclined. However this is left, both legs have ended or are being
        aborted, and an offer that nobody fetched is released."""
        prefill = asyncio.create_task(self._prefill())
        decode: asyncio.Task[LegReport] | None = None
        fetched = False
        try:
            first: set[asyncio.Future[Any]] = {prefill, self._source}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not self._source.done() or not self._unfinished:
                return [await prefill]
            begun = self.legs.fleet.clock()
            decode = asyncio.create_task(self._decode(self._source.result()))
            await self._until_decided(prefill, decode)
            if not decode.done():
                return [prefill.result()]
            report = self._result_of(decode, prefill, begun)
            fetched = True
            if not prefill.done():
                await asyncio.wait({prefill}, timeout=LAST_WORDS_SECONDS)
            return [*_report_of(prefill), report]
        finally:
            tasks = {task for task in (prefill, decode) if task is not None}
            for task in tasks:
                task.cancel()
            if not fetched:
                # Even if the hand-off was not seen: the instance may have made the offer.
                self.janitor.release(self.taken.stops[0][0].member, self._transfer)
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _unfinished(self) -> bool:
        return bool(self.job.unfinished(self.choices))

    async def _until_decided(
        self, prefill: asyncio.Task[LegReport], decode: asyncio.Task[LegReport]
    ) -> None:
        """Until the decode leg is over, or nothing can come of it: all choices ended with their
        first token, or that token is lost."""
        while not decode.done():
            if prefill.done():
                lost = prefill.exception() is not None and self._without_first
                if lost or not self._unfinished:
                    return
            running = {decode} if prefill.done() else {decode, prefill}
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    async def _prefill(self) -> LegReport:
        stop, flight = self.taken.stops[0]
        leg = self.job.leg(stop, flight, self.choices, self._prior, transfer=self._transfer)
        return await self.job.run_leg(self.legs, stop, flight, leg, self._on_prefill)

    async def _decode(self, source: Source) -> LegReport:
        stop, flight = self.taken.stops[1]
        leg = self.job.leg(stop, flight, self.choices, self._prior, source=source)
        return await self.job.run_leg(self.legs, stop, flight, leg, self._on_decode)

    def _on_prefill(self, event: Progressing) -> None:
        if not isinstance(event, Handoff):
            self.job.progress.accept(event)
        elif not self._source.done():
            self._source.set_result(event.source)
        if isinstance(event, Token):
            self._without_first.discard(event.choice)

    def _on_decode(self, event: Progressing) -> None:
        if not self._decodes:
            self._decodes = True
            handover_succeeded(*self._members)
        if not isinstance(event, Handoff):
            self.job.progress.accept(event)

    @property
    def _members(self) -> tuple[Member, Member]:
        (prefill, _), (decode, _) = self.taken.stops
        return prefill.member, decode.member

    def _result_of(
        self, decode: asyncio.Task[LegReport], prefill: asyncio.Task[LegReport], begun: float
    ) -> LegReport:
        """A decode instance that reports a failure may have been let down by its source. If that
        one's own leg has failed, it has been counted already. `begun`: when it was asked."""
        try:
            return decode.result()
        except LegFailed as failure:
            source, target = self._members
            if not failure.is_own:
                failure.suspects |= {source.name}
            counted = prefill.done() and prefill.exception() is not None
            if failure.is_transfer and not self._decodes and not counted:
                self.legs.fleet.handover_failed(source, target, begun)
            raise


def _report_of(task: asyncio.Task[LegReport]) -> list[LegReport]:
    if task.done() and not task.cancelled() and task.exception() is None:
        return [task.result()]
    return []
