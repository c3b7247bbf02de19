"""Turns a request set, a pair and a seed into the requests of a run: the same for every system.

Drawn anew from the seed for each pair, as the papers' clients do, so systems and reruns see the
same requests at the same instants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distserve.bench.errors import BenchError
from distserve.bench.outcome import Planned
from distserve.bench.prompts import prompts_of
from distserve.bench.question import Pair
from distserve.workload import NO_OBJECTIVES, ArrivalProcess, RequestSet, WorkloadError


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run's requests besides the pair."""

    requests: RequestSet
    arrivals: ArrivalProcess
    seed: int = 0
    prompt_format: str = "auto"
    """See `prompts_of`."""
    token_ids: range = range(10, 1000)
    drawn: bool = False
    """The set was itself drawn for this series: a pair takes its first requests, which are the same
    however many the longest pair needs. A file's are drawn from."""

    def plan(self, pair: Pair) -> list[Planned]:
        """The pair's requests in order of arrival. Raises BenchError with the cure."""
        try:
            chosen, times_ms = self._arrive(pair)
        except WorkloadError as error:
            raise BenchError(str(error)) from error
        prompts = prompts_of(chosen, self.prompt_format, self.token_ids, self.seed)
        own = chosen.objectives or [NO_OBJECTIVES] * len(chosen)
        return [
            Planned(index, time_ms / 1000, prompt, prompt_tokens, output_tokens, objectives)
            for index, (time_ms, prompt, prompt_tokens, output_tokens, objectives) in enumerate(
                zip(
                    times_ms,
                    prompts,
                    chosen.prompt_tokens,
                    chosen.output_tokens,
                    own,
                    strict=True,
                )
            )
        ]

    def _arrive(self, pair: Pair) -> tuple[RequestSet, Sequence[float]]:
        if self.arrivals.kind != "recorded":
            if pair.rate is None:
                raise BenchError("a rate of None needs --request-distribution recorded")
            chosen = self._choose(pair.requests)
            return chosen, self.arrivals.times_ms(pair.requests, pair.rate)
        chosen = self.requests.first(pair.requests)
        times = chosen.recorded().arrival_ms
        if pair.rate is None or len(times) == 1:
            return chosen, times
        # Squeezed or stretched to the asked mean rate: the shape of the trace is kept.
        span_ms = (len(times) - 1) / pair.rate * 1000
        if not times[-1] > 0:
            raise BenchError(f"the first {len(times)} requests arrive at one instant; ask for more")
        return chosen, [time * span_ms / times[-1] for time in times]

    def _choose(self, count: int) -> RequestSet:
        return self.requests.first(count) if self.drawn else self.requests.sample(count, self.seed)
