"""Turns a request set, a pair and a seed into the requests of a run: the same for every system.

Drawn anew from the seed for each pair, as the papers' clients do, so systems and reruns see the
same requests at the same instants. What is made up is another prompt at each rate, also where the
set says what the prompts of one have in common: a server that keeps prefixes would else have been
told all of it at the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distserve.bench.errors import BenchError
from distserve.bench.outcome import Planned
from distserve.bench.prompts import check_made_up, has_own_texts, prompts_of
from distserve.bench.question import Pair
from distserve.workload import NO_OBJECTIVES, ArrivalProcess, RequestSet, WorkloadError

_WARM_UP = "Warm-up. "
_WARM_UP_INSTEAD_OF = 40
"""So many characters of a text: of most, more tokens than these words are."""
_WARM_UP_LESS = 16
"""And so many tokens of a long answer less, a short one's half: how many a text's first characters
are only the server knows, and if it takes no token more than were asked it takes the warm-up."""


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
    """The set was itself drawn for this series: a pair takes its first requests, whose lengths are
    the same however many the longest pair needs. A file's are drawn from."""

    @property
    def own_texts(self) -> bool:
        """Whether the set's own texts are sent, which are the same at every rate."""
        return has_own_texts(self.requests, self.prompt_format)

    @property
    def sends(self) -> str:
        """What the format comes to with this set: `text` or `tokens`."""
        return "text" if self.own_texts or self.prompt_format == "text" else "tokens"

    @property
    def shared_prefixes(self) -> bool:
        """Whether prompts are made up that begin alike, as the set says."""
        return not self.own_texts and self.requests.prefix_blocks is not None

    def check(self, pair: Pair) -> None:
        """Raises BenchError with the cure where `plan` would; makes no prompts."""
        chosen, _ = self._arrive(pair)
        check_made_up(chosen, self.prompt_format)

    def plan(self, pair: Pair, attempt: int = 1) -> list[Planned]:
        """The pair's requests in order of arrival. Another attempt has the same but for what is
        made up: the server may know the prompts of the first. Raises BenchError with the cure."""
        chosen, times_ms = self._arrive(pair)
        draw = pair.label if attempt == 1 else f"{pair.label} attempt {attempt}"
        return _planned(chosen, times_ms, self._prompts(chosen, draw))

    def warm_up(self, count: int, pair: Pair) -> list[Planned]:
        """So many requests of the pair's lengths, but no prompt that is measured: what they leave
        in a prefix cache helps nobody. Nor are they longer than what is. Raises as `plan`."""
        chosen = replace(self._arrive(pair)[0].resample(count, self.seed), prefix_blocks=None)
        prompts = self._prompts(chosen, "warm-up")
        if self.own_texts:
            prompts = [f"{_WARM_UP}{text[_WARM_UP_INSTEAD_OF:]}" for text in prompts]
            answers = [tokens - min(_WARM_UP_LESS, tokens // 2) for tokens in chosen.output_tokens]
            chosen = replace(chosen, output_tokens=answers)
        return _planned(chosen, [0.0] * count, prompts)

    def _prompts(self, chosen: RequestSet, draw: str) -> list[str | list[int]]:
        return prompts_of(chosen, self.prompt_format, self.token_ids, f"{self.seed} {draw}")

    def _arrive(self, pair: Pair) -> tuple[RequestSet, Sequence[float]]:
        """Which requests, and their instants in milliseconds."""
        try:
            if self.arrivals.kind == "recorded":
                return self._recorded(pair)
            if pair.rate is None:
                raise BenchError("a rate of None needs --request-distribution recorded")
            return self._choose(pair.requests), self.arrivals.times_ms(pair.requests, pair.rate)
        except WorkloadError as error:
            raise BenchError(str(error)) from error

    def _recorded(self, pair: Pair) -> tuple[RequestSet, Sequence[float]]:
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


def _planned(
    chosen: RequestSet, times_ms: Sequence[float], prompts: Sequence[str | list[int]]
) -> list[Planned]:
    own = chosen.objectives or [NO_OBJECTIVES] * len(chosen)
    lengths = zip(chosen.prompt_tokens, chosen.output_tokens, strict=True)
    return [
        Planned(index, time_ms / 1000, prompt, prompt_tokens, output_tokens, objectives)
        for index, (time_ms, prompt, (prompt_tokens, output_tokens), objectives) in enumerate(
            zip(times_ms, prompts, lengths, own, strict=True)
        )
    ]
