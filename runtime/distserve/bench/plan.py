"""Turns a request set, a pair and a seed into the requests of a run: the same for every system.

Drawn anew from the seed for each pair, as the papers' clients do, so systems and reruns see the
same requests at the same instants.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from distserve.bench.errors import BenchError
from distserve.bench.outcome import Planned
from distserve.bench.question import Pair
from distserve.workload import NO_OBJECTIVES, ArrivalProcess, RequestSet, WorkloadError

PROMPT_FORMATS = ("auto", "text", "tokens")
MOST_MADE_UP_TOKENS = 100_000_000  # 36 bytes each


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run's requests besides the pair."""

    requests: RequestSet
    arrivals: ArrivalProcess
    seed: int = 0
    prompt_format: str = "auto"
    """`auto` sends the set's own texts where it has them, else made-up token ids."""
    token_ids: range = range(10, 1000)

    def plan(self, pair: Pair) -> list[Planned]:
        """The pair's requests in order of arrival. Raises BenchError with the cure."""
        try:
            chosen, times_ms = self._arrive(pair)
        except WorkloadError as error:
            raise BenchError(str(error)) from error
        prompts = self._prompts(chosen)
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
            chosen = self.requests.sample(pair.requests, self.seed)
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

    def _prompts(self, chosen: RequestSet) -> list[str | list[int]]:
        if self.prompt_format == "text" and chosen.prompts is None:
            raise BenchError(
                f"{chosen.name} has lengths but no texts; use --prompt-format tokens, or a .ds file"
            )
        if self.prompt_format != "tokens" and chosen.prompts is not None:
            # Half a surrogate pair, which some chat logs have, is no UTF-8 and so no JSON.
            return [text.encode("utf-8", "replace").decode() for text in chosen.prompts]
        if (tokens := sum(chosen.prompt_tokens)) > MOST_MADE_UP_TOKENS:
            raise BenchError(
                f"{tokens} tokens of made-up prompts do not fit the memory; ask for fewer requests "
                "or leave long ones out by --max-model-len"
            )
        # Apart from the draws of lengths and times; different in each request, so that no prefix
        # cache answers in the engine's stead.
        draw = random.Random(f"prompts {self.seed}")
        return [draw.choices(self.token_ids, k=tokens) for tokens in chosen.prompt_tokens]
