"""The papers' objectives by name, for `--slo NAME`; what is measured against them is yours."""

from __future__ import annotations

from dataclasses import dataclass

from distserve.bench.errors import BenchError


@dataclass(frozen=True)
class Slo:
    """Time to first token and time per output token after it, in seconds; both are met at `<=`."""

    ttft: float
    tpot: float
    factor: float = 1.0
    """By which it was scaled: requests' own objectives are scaled with it."""

    def scaled(self, factor: float) -> Slo:
        return Slo(self.ttft * factor, self.tpot * factor, self.factor * factor)


@dataclass(frozen=True)
class NamedSlo:
    slo: Slo
    scales: tuple[float, ...]
    """The factors of the paper's sweep over tighter and looser objectives."""
    source: str


_OSDI = "DistServe, OSDI 2024, table 1"
_ARXIV = "DistServe, arXiv v2"
_DOWN = (1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4)

NAMED_SLOS = {
    "sharegpt-opt-13b": NamedSlo(Slo(0.25, 0.1), _DOWN, _OSDI),
    "sharegpt-opt-66b": NamedSlo(Slo(2.5, 0.15), _DOWN, _OSDI),
    "sharegpt-opt-175b": NamedSlo(Slo(4.0, 0.2), _DOWN, _OSDI),
    "humaneval-opt-66b": NamedSlo(Slo(0.125, 0.2), (1.5, *_DOWN[2:]), _OSDI),
    "longbench-opt-66b": NamedSlo(Slo(15, 0.15), (10, 8.5, 7, 5.5, 4, 2.5, 1, 0.8, 0.55), _OSDI),
    "sharegpt-opt-13b-arxiv": NamedSlo(Slo(0.2, 0.1), _DOWN, _ARXIV),
    "sharegpt-opt-66b-arxiv": NamedSlo(Slo(0.4, 0.1), _DOWN, _ARXIV),
}
DEFAULT_SCALES = _DOWN


@dataclass(frozen=True)
class NormalisedSlo:
    """LoongServe's objectives: mean milliseconds per token of all, of input, of output."""

    total_ms: float
    input_ms: float
    output_ms: float


LOONGSERVE_SLOS = {
    "sharegpt": NormalisedSlo(92, 20, 320),
    "l-eval": NormalisedSlo(3.5, 1.8, 320),
    "lv-eval": NormalisedSlo(2.5, 2.5, 365),
    "mixed": NormalisedSlo(70, 90, 360),
    "multi-node": NormalisedSlo(65, 64, 200),
}
"""LoongServe, SOSP 2024, figures 10 and 11: 25 times the unloaded latency."""


def normalised_slo(name: str) -> NormalisedSlo:
    if name not in LOONGSERVE_SLOS:
        raise BenchError(
            f"unknown normalised SLO {name!r}; choose one of {', '.join(LOONGSERVE_SLOS)}"
        )
    return LOONGSERVE_SLOS[name]


def named_slo(name: str) -> NamedSlo:
    if name not in NAMED_SLOS:
        raise BenchError(f"unknown SLO {name!r}; choose one of {', '.join(NAMED_SLOS)}")
    return NAMED_SLOS[name]
