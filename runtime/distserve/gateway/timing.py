"""When the tokens of a request came: TTFT, TPOT and objectives are computed here alone."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from distserve.gateway.metrics import Metrics
from distserve.wire.dialect import Slo

WINDOW_SECONDS = 60.0
WINDOW_REQUESTS = 2000


@dataclass
class ChoiceTiming:
    """Times in seconds of one clock."""

    first: float = 0.0
    last: float = 0.0
    tokens: int = 0

    @property
    def tpot(self) -> float | None:
        """Of the tokens, not of the events that brought them. None below two tokens."""
        return None if self.tokens < 2 else (self.last - self.first) / (self.tokens - 1)


@dataclass
class PromptTiming:
    """One prompt of a request."""

    arrived: float
    metrics: Metrics
    choices: dict[int, ChoiceTiming] = field(default_factory=dict)
    ttft: float | None = None

    def token(self, choice: int, now: float) -> None:
        if self.ttft is None:
            self.ttft = now - self.arrived
            self.metrics.ttft.observe(self.ttft)
        timing = self.choices.setdefault(choice, ChoiceTiming(first=now, last=now))
        if timing.tokens:
            self.metrics.inter_token.observe(now - timing.last)
        timing.last = now
        timing.tokens += 1

    @property
    def worst_tpot(self) -> float | None:
        return max((t.tpot for t in self.choices.values() if t.tpot is not None), default=None)


@dataclass(frozen=True)
class Sample:
    at: float
    ttft: float
    tpot: float | None


class Window:
    """The last minute, for the runner's table and for Retry-After."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=WINDOW_REQUESTS)

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)

    def quantile(self, name: str, share: float, now: float) -> float | None:
        """Seconds; `name` is ttft or tpot. None where nothing was measured."""
        values = sorted(
            value
            for s in self._samples
            if now - s.at <= WINDOW_SECONDS and (value := getattr(s, name)) is not None
        )
        return values[min(len(values) - 1, int(share * len(values)))] if values else None


def record_answer(
    prompts: Iterable[PromptTiming], slo: Slo, metrics: Metrics, window: Window, now: float
) -> tuple[str, ...]:
    """A request was answered in full. Its worst prompt and choice stand for it.

    The objectives that it met: ttft, tpot, both. They are counted where the request is, so that
    no scrape sees one without the other.
    """
    prompts = list(prompts)
    for prompt in prompts:
        for choice in prompt.choices.values():
            if choice.tpot is not None:
                metrics.tpot.observe(choice.tpot)
    ttfts = [p.ttft for p in prompts if p.ttft is not None]
    tpots = [p.worst_tpot for p in prompts if p.worst_tpot is not None]
    if not ttfts:
        return ()
    window.add(Sample(now, max(ttfts), max(tpots, default=None)))
    in_time = slo.ttft_ms is None or max(ttfts) * 1000 <= slo.ttft_ms
    in_pace = slo.tpot_ms is None or max(tpots, default=0.0) * 1000 <= slo.tpot_ms
    promised = slo.ttft_ms is not None or slo.tpot_ms is not None
    met = {
        "ttft": slo.ttft_ms is not None and in_time,
        "tpot": slo.tpot_ms is not None and in_pace,
        "both": promised and in_time and in_pace,
    }
    return tuple(name for name, is_met in met.items() if is_met)


def overdue(prompts: Iterable[PromptTiming], slo: Slo, now: float) -> bool:
    """A first token has not come by its objective: who gives up then has seen it missed. Who cuts
    a stream short is another matter: were only the late ones of these counted, the more are cut,
    the more would seem to be missed."""
    if slo.ttft_ms is None:
        return False
    return any(p.ttft is None and (now - p.arrived) * 1000 > slo.ttft_ms for p in prompts)
