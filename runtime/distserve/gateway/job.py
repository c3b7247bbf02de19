"""A generation that runs: what has come of it, until when it may take, and the legs it needs."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from distserve.gateway.fleet import Flight
from distserve.gateway.generation import Generation, Progress
from distserve.gateway.legs import LegRunner, Progressing
from distserve.gateway.routing import Stop
from distserve.gateway.stages import LegReport
from distserve.wire.dialect import Leg, Phases, Source
from distserve.wire.tracing import Span


@dataclass(eq=False)
class Job:
    generation: Generation
    progress: Progress
    arrived: float
    """Seconds, monotonic."""
    deadline: float
    """Of the event loop's clock."""
    span: Span
    reports: list[LegReport] = field(default_factory=list)
    """Of the attempt that finished it, once its legs have said their last words."""
    fingerprint: str = ""
    """Of the instance that gave its first token: what follows should come of the same model."""

    def prior(self, choices: Sequence[int]) -> list[int]:
        """What a leg begins with. Of several choices none has begun."""
        if len(choices) > 1:
            return []
        choice = self.progress.choices[choices[0]]
        return choice.tokens[:] if choice.diverged else choice.tokens[:-1]

    def begin_replay(self, choices: Sequence[int]) -> None:
        """After the last of max_tokens nothing comes that could follow another one."""
        for index in choices:
            choice = self.progress.choices[index]
            ongoing = 0 < len(choice.tokens) < self.generation.sampling.max_tokens
            self.progress.begin_replay(index, repeats=ongoing and not choice.diverged)

    def tokens_out(self, choices: Sequence[int]) -> int:
        return sum(len(self.progress.choices[index].tokens) for index in choices)

    def unfinished(self, choices: Sequence[int]) -> list[int]:
        return [c for c in choices if not self.progress.choices[c].finished]

    def leg(
        self,
        stop: Stop,
        flight: Flight,
        choices: Sequence[int],
        prior: list[int],
        *,
        transfer: str | None = None,
        source: Source | None = None,
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
            prior=prior,
            transfer=transfer,
            source=source,
            salt=generation.salt,
            slo=generation.slo,
            only_if=stop.only_if,
            timeout_ms=max(1.0, remaining * 1000),
        )

    async def run_leg(
        self,
        legs: LegRunner,
        stop: Stop,
        flight: Flight,
        leg: Leg,
        on_event: Callable[[Progressing], None],
    ) -> LegReport:
        """Raises LegFailed or LegDeclined."""

        def heard(event: Progressing) -> None:
            on_event(event)
            if not self.fingerprint and self.progress.started:
                self.fingerprint = stop.member.fingerprint

        with self.span.child(f"leg {stop.phases}", instance=stop.member.name) as span:
            headers = {"x-request-id": self.generation.request_id, **span.headers()}
            issued = time.monotonic()
            return LegReport(issued, await legs.run(flight, leg, headers, heard))
