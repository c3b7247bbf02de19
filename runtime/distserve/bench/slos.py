"""The papers' objectives and rates by name, for `--slo NAME` and `--num-prompts-req-rates NAME`;
what is measured is yours."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distserve.bench.errors import BenchError

NONE = math.inf
"""An objective that is not there: any time meets it."""


@dataclass(frozen=True)
class Slo:
    """Time to first token and time per output token after it, in seconds; both are met at `<=`."""

    ttft: float = NONE
    tpot: float = NONE
    factor: float = 1.0
    """By which it was scaled: requests' own objectives are scaled with it."""

    def scaled(self, factor: float) -> Slo:
        return Slo(self.ttft * factor, self.tpot * factor, self.factor * factor)


@dataclass(frozen=True)
class Multiple:
    """So many times what an almost idle server takes: how some papers state an objective."""

    times: float


Objective = float | Multiple
"""Seconds, or a multiple that becomes seconds once something is measured."""


def words(objective: Objective) -> str:
    """As `0.25 s`, `5x` or `none`."""
    if isinstance(objective, Multiple):
        return f"{objective.times:g}x"
    return "none" if objective == NONE else f"{objective:g} s"


@dataclass(frozen=True)
class NamedSlo:
    ttft: Objective
    tpot: Objective
    scales: tuple[float, ...]
    """The factors of the paper's sweep over tighter and looser objectives."""
    source: str
    scale_rate: float | None = None
    """Requests per second per GPU of that sweep; None where the paper's is not for one rate."""
    requests: int = 0
    """Per GPU, at each of `rates`."""
    rates: tuple[float, ...] = ()
    """Requests per second per GPU at which the paper measured; empty where it publishes no list."""


_OSDI = "DistServe, OSDI 2024, table 1"
_ARXIV = "DistServe, arXiv v2"
_ADASERVE = "AdaServe, EuroSys 2026"
_TROPICAL = "Tropical, DAC 2025"
_LOONGSERVE = "LoongServe, SOSP 2024, figure 12"


def _multiples(of: float, *times: float) -> tuple[float, ...]:
    return tuple(of * one for one in times)


def _tenths(most: int, least: int) -> tuple[float, ...]:
    return tuple(tenth / 10 for tenth in range(most, least - 1, -1))


_DOWN = (1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4)
_ADASERVE_SCALES = (1.6, 1.4, 1.2, 1.0, 0.8, 0.6)
_OF_13B = (0.25, 0.5, 1, 1.5, 2, 2.25, 2.5, 3)
_OF_66B = _multiples(1 / 8, 0.5, *range(1, 7))
# DistServe's factors and rates are those of the plots in its repository.
NAMED_SLOS = {
    "sharegpt-opt-13b": NamedSlo(0.25, 0.1, _DOWN, _OSDI, 1.5, 100, _OF_13B),
    "sharegpt-opt-66b": NamedSlo(
        2.5, 0.15, (3, 2.5, 2, 1.7, 1.5, 1.3, 1.1, 0.9, 0.8, 0.7), _OSDI, 0.75, 25, _OF_66B
    ),
    "sharegpt-opt-175b": NamedSlo(
        4.0, 0.2, _DOWN[:-1], _OSDI, 0.125, 25, _multiples(1 / 32, *range(1, 11))
    ),
    "humaneval-opt-66b": NamedSlo(
        0.125, 0.2, _tenths(15, 4), _OSDI, 0.875, 50, _multiples(1 / 8, *range(1, 18, 2))
    ),
    "longbench-opt-66b": NamedSlo(
        15,
        0.15,
        (10, 8.5, 7, 5.5, 4, 2.5, 1, 0.8, 0.55),
        _OSDI,
        0.375,
        25,
        _multiples(1 / 16, *range(1, 11)),
    ),
    "sharegpt-opt-13b-arxiv": NamedSlo(0.2, 0.1, _DOWN, _ARXIV, 1.5, 100, _OF_13B),
    "sharegpt-opt-66b-arxiv": NamedSlo(0.4, 0.1, _tenths(16, 7), _ARXIV, 0.25, 25, _OF_66B),
    # Of AdaServe's coding the paper fixes the factor; its artifact's baselines are 30 and 28 ms.
    "adaserve-coding": NamedSlo(NONE, Multiple(1.2), _ADASERVE_SCALES, _ADASERVE),
    "adaserve-coding-llama-70b": NamedSlo(NONE, 0.036, _ADASERVE_SCALES, _ADASERVE),
    "adaserve-coding-qwen-32b": NamedSlo(NONE, 0.0336, _ADASERVE_SCALES, _ADASERVE),
    "adaserve-chat": NamedSlo(NONE, 0.05, _ADASERVE_SCALES, _ADASERVE),
    "adaserve-summarisation": NamedSlo(NONE, 0.15, _ADASERVE_SCALES, _ADASERVE),
    "tropical": NamedSlo(Multiple(5), 0.1, _DOWN, _TROPICAL),
    "loongserve-zipf": NamedSlo(15, 0.05, _DOWN, _LOONGSERVE),
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


def named_slo(name: str) -> NamedSlo:
    if name not in NAMED_SLOS:
        raise BenchError(f"unknown SLO {name!r}; choose one of {', '.join(NAMED_SLOS)}")
    return NAMED_SLOS[name]
