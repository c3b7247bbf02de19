"""Which objectives a report holds runs against: named, given, else those that the runs had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from distserve.bench.analysis import NOT_ITS_OWN, Normalised, Run, normalised
from distserve.bench.errors import BenchError
from distserve.bench.quantiles import quantile
from distserve.bench.slos import (
    DEFAULT_SCALES,
    NONE,
    Multiple,
    NormalisedSlo,
    Objective,
    Slo,
    named_slo,
)


@dataclass(frozen=True)
class Asked:
    """What the command line says of objectives; a None was not said."""

    name: str | None = None
    ttft: Objective | None = None
    tpot: Objective | None = None
    scales: tuple[float, ...] | None = None
    scale_rate: float | None = None


@dataclass(frozen=True)
class Held:
    """What the runs are held against, and where that is from."""

    slo: Slo
    scales: tuple[float, ...]
    scale_rate: float | None
    """Requests per second per GPU, where the sweep over scales is wanted."""
    source: str


def held_against(runs: Sequence[Run], asked: Asked) -> Held:
    """Raises BenchError where nobody says what the objectives are."""
    if asked.name is not None:
        if asked.ttft is not None or asked.tpot is not None:
            raise BenchError("--slo and --slo-ttft/--slo-tpot exclude each other; give one")
        named = named_slo(asked.name)
        ttft, tpot, source = named.ttft, named.tpot, f"{asked.name}; {named.source}"
        scales, scale_rate = named.scales, named.scale_rate
    else:
        (ttft, of_ttft), (tpot, of_tpot) = (
            _objective(runs, part, said)
            for part, said in (("ttft", asked.ttft), ("tpot", asked.tpot))
        )
        source = of_ttft if of_ttft == of_tpot else f"TTFT {of_ttft}, TPOT {of_tpot}"
        scales, scale_rate = DEFAULT_SCALES, None
        if ttft == tpot == NONE and not _each_its_own(runs):
            raise BenchError(
                "no objectives are known of these runs; give --slo-ttft, --slo-tpot or both, or "
                "--slo NAME"
            )
    slo = Slo(_seconds(ttft, runs, "ttft"), _seconds(tpot, runs, "tpot"))
    for part, objective in (("TTFT", ttft), ("TPOT", tpot)):
        if isinstance(objective, Multiple):
            source += f"; {part} {objective.times:g} times {_base(runs, part.lower()).words}"
    return Held(slo, asked.scales or scales, asked.scale_rate or scale_rate, source)


def _objective(runs: Sequence[Run], part: str, said: Objective | None) -> tuple[Objective, str]:
    """One objective, and whose it is."""
    if said is not None:
        return said, "given"
    of_runs = {
        parameters.get(f"slo_{part}") for run in runs if (parameters := run.about.get("parameters"))
    }
    if len(of_runs) > 1:
        found = sorted(NONE if seconds is None else seconds for seconds in of_runs)
        raise BenchError(
            f"the runs do not agree on {part.upper()}: "
            f"{', '.join('none' if s == NONE else f'{s * 1000:g} ms' for s in found)}; "
            f"give --slo-{part}, or --slo NAME"
        )
    seconds = next(iter(of_runs), None)
    return (NONE if seconds is None else seconds), "of the runs"


def _each_its_own(runs: Sequence[Run]) -> bool:
    owns = {sample.own for run in runs for sample in run.samples}
    return bool(owns) and NOT_ITS_OWN not in owns


@dataclass(frozen=True)
class Base:
    """What an almost idle server takes, as near as the runs come to it."""

    seconds: float
    run: Run

    @property
    def words(self) -> str:
        at = f"{self.run.system} at {self.run.rate_per_gpu:.3g}/s/GPU"
        return f"{self.seconds * 1000:.4g} ms, the median of {at}"


def _base(runs: Sequence[Run], part: str) -> Base:
    """The least median of all valid runs, one base for all systems: else a slow one has it easy.

    Raises BenchError where nothing of the kind was measured.
    """
    bases = [
        Base(quantile(values, 50), run)
        for run in runs
        if run.valid and (values := [v for s in run.samples if (v := getattr(s, part)) is not None])
    ]
    if not bases:
        raise BenchError(
            f"no valid run has a {part.upper()} to take a multiple of; give --slo-{part} as 250ms"
        )
    return min(bases, key=lambda base: base.seconds)


def _seconds(objective: Objective, runs: Sequence[Run], part: str) -> float:
    if isinstance(objective, Multiple):
        return objective.times * _base(runs, part).seconds
    return objective


def limits_per_token(runs: Sequence[Run], limits: Sequence[Objective]) -> NormalisedSlo:
    """`limits` of all tokens, of input and of output; multiples are of the least mean of all valid
    runs, one for all systems.

    Raises BenchError where nothing of the kind was measured.
    """

    def seconds(part: str, limit: Objective) -> float:
        if not isinstance(limit, Multiple):
            return limit
        means: list[float] = [getattr(normalised(run), part) for run in runs if run.valid]
        measured = [mean for mean in means if not math.isnan(mean)]
        if not measured:
            raise BenchError(
                f"no valid run has a latency per token ({part}) to take a multiple of; "
                "give --normalised-slo as 92ms,20ms,320ms"
            )
        return limit.times * min(measured)

    return NormalisedSlo(
        *(
            1000 * seconds(part.name, limit)
            for part, limit in zip(fields(Normalised), limits, strict=True)
        )
    )
