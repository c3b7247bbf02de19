"""What is printed and written of the comparison."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.planner_truth.figures import (
    SCALES,
    STAGES,
    Compared,
    Errors,
    Seen,
    Setup,
)
from benchmarks.planner_truth.measured import Run

KNEE = 0.9
"""Beyond this share of the capacity figures are reported and not judged."""
AIM_POINTS, AIM_PERCENT = 2.0, 10.0


def setup_line(setup: Setup) -> str:
    return (
        f"{setup.model} {setup.strategy}: capacity {setup.capacity:.1f} requests/s, simulated "
        f"{setup.simulated_capacity:.1f}; SLO {setup.slo_ttft_ms:g}/{setup.slo_tpot_ms:g} ms"
    )


def run_line(row: Compared) -> str:
    real, simulated, beside, paced = row.real, row.simulated, row.beside, row.paced

    def pair(name: str) -> str:
        return f"{getattr(real, name):.1f}/{getattr(simulated, name):.1f}"

    def mean(series: Sequence[float]) -> float:
        return statistics.fmean(series) if series else 1.0

    stages = ", ".join(
        f"{stage} {real.stages_ms[stage]:.0f}/{simulated.stages_ms[stage]:.0f}" for stage in STAGES
    )
    return (
        f"{row.share:4.0%} {row.rate:5.1f}/s seed {row.seed}, real/simulated: attainment "
        f"{real.attainment[1.0]:.1f}/{simulated.attainment[1.0]:.1f}; "
        f"TTFT p50 {pair('ttft_p50_ms')}, p90 {pair('ttft_p90_ms')}; "
        f"TPOT p50 {pair('tpot_p50_ms')}, p90 {pair('tpot_p90_ms')}; "
        f"means: {stages}; client lag p99 {row.client_lag_p99_ms:.1f} ms, "
        f"others {row.others_cpu:.2f} cores; "
        f"in the pace beside it: attainment {beside.attainment[1.0]:.1f}, TTFT p90 "
        f"{beside.ttft_p90_ms:.1f}, TPOT p90 {beside.tpot_p90_ms:.1f}; "
        f"at its own pace ({mean(row.pace.prefill):.2f}/{mean(row.pace.decode):.2f}): attainment "
        f"{paced.attainment[1.0]:.1f}, TTFT p90 {paced.ttft_p90_ms:.1f}, TPOT p90 "
        f"{paced.tpot_p90_ms:.1f}"
    )


def disturbed_line(run: Run) -> str:
    return (
        f"{run.share:4.0%} {run.rate:5.1f}/s seed {run.seed}: not judged, others took "
        f"{run.others_cpu:.2f} cores"
    )


def summary(rows: Sequence[Compared]) -> Iterator[str]:
    """Errors of simulated against real. Of a rate: that of the means over its repeats; least to
    most of single runs, and the mean of their absolute ones."""
    scales = ", ".join(f"{scale:g}" for scale in SCALES)
    yield f"(over scales: mean attainment error with the SLO's times {scales} times)"
    yield (
        "| model, strategy | rate of capacity | runs | attainment, points "
        "| over scales | TTFT p90 | TPOT p90 |"
    )
    yield "|---|---|---|---|---|---|---|"
    groups: dict[tuple[str, str], dict[float, list[Compared]]] = {}
    for row in rows:
        groups.setdefault((row.model, row.strategy), {}).setdefault(row.share, []).append(row)
    for (model, strategy), by_share in groups.items():
        judged = [members for share, members in sorted(by_share.items()) if share <= KNEE]
        for share, members in sorted(by_share.items()):
            mark = "" if share <= KNEE else " (not judged)"
            errors = Errors.of([(row.simulated, row.real) for row in members])
            yield (
                f"| {model}, {strategy} | {share:.0%}, {_rates(members)}/s{mark} "
                f"| {len(members)} "
                f"| {_spread(errors, 'attainment', '')} "
                f"| {statistics.fmean(errors.attainment_over_scales):.1f} "
                f"| {_spread(errors, 'ttft_p90', ' %')} | {_spread(errors, 'tpot_p90', ' %')} |"
            )
        if judged:
            plain = [Errors.of([(r.simulated, r.real) for r in rate]) for rate in judged]
            yield _mean(model, strategy, plain)
            yield _means(model, strategy, "the same of absolute errors", plain)
            if min(map(len, judged)) > 1:
                yield from _chance(model, strategy, plain)
            beside = [Errors.of([(r.beside, r.real) for r in rate]) for rate in judged]
            yield _means(model, strategy, "the same, in the pace of the loads beside each", beside)
            paced = [Errors.of([(r.paced, r.real) for r in rate]) for rate in judged]
            yield _means(model, strategy, "the same, each at its own steps' pace", paced)
            pairs = [some for some in map(_pairs, judged) if some]
            if pairs:
                yield _apart(model, strategy, pairs)


def _rates(members: Sequence[Compared]) -> str:
    """Of several measurements, whose capacities differ, the least and the most."""
    rates = sorted({f"{row.rate:.1f}" for row in members}, key=float)
    return rates[0] if len(rates) == 1 else f"{rates[0]} to {rates[-1]}"


def _pairs(rate: Sequence[Compared]) -> list[tuple[Seen, Seen]]:
    """Real runs of the same arrivals."""
    by_arrivals: dict[tuple[int, int], list[Seen]] = {}
    for row in rate:
        by_arrivals.setdefault((row.measurement, row.seed), []).append(row.real)
    return [(seen[0], seen[1]) for seen in by_arrivals.values() if len(seen) > 1]


def _apart(model: str, strategy: str, rates: Sequence[Sequence[tuple[Seen, Seen]]]) -> str:
    def percent(name: str) -> float:
        def of(pairs: Sequence[tuple[Seen, Seen]]) -> float:
            both = [(getattr(one, name), getattr(other, name)) for one, other in pairs]
            return statistics.fmean(200 * abs(a - b) / (a + b) for a, b in both)

        return statistics.fmean(map(of, rates))

    def points(scale: float) -> float:
        def of(pairs: Sequence[tuple[Seen, Seen]]) -> float:
            both = [(one.attainment[scale], other.attainment[scale]) for one, other in pairs]
            return statistics.fmean(abs(a - b) for a, b in both)

        return statistics.fmean(map(of, rates))

    pairs = sum(map(len, rates))
    return (
        f"| {model}, {strategy} | two real runs of the same arrivals | {pairs} pairs "
        f"| {points(1.0):.1f} apart | {statistics.fmean(map(points, SCALES)):.1f} "
        f"| {percent('ttft_p90_ms'):.1f} % | {percent('tpot_p90_ms'):.1f} % |"
    )


def _mean(model: str, strategy: str, rates: Sequence[Errors]) -> str:
    """Over rates, of the plan's errors with their signs, and its standard error: what plans are
    off as a whole."""

    def of(name: str, unit: str, aim: float) -> str:
        mean = statistics.fmean(errors.of_means[name] for errors in rates)
        standard = math.hypot(*(errors.standard[name] for errors in rates)) / len(rates)
        return f"**{mean:+.1f}{unit}** ± {standard:.1f} (aim {aim:g}{unit})"

    runs = sum(len(errors.attainment) for errors in rates)
    return (
        f"| **{model}, {strategy}** | mean up to {KNEE:.0%} | {runs} "
        f"| {of('attainment', '', AIM_POINTS)} | "
        f"| {of('ttft_p90', ' %', AIM_PERCENT)} | {of('tpot_p90', ' %', AIM_PERCENT)} |"
    )


def _means(model: str, strategy: str, what: str, rates: Sequence[Errors]) -> str:
    """Over rates, of how far the means over a rate's repeats are off; and of single runs, which
    fall out otherwise than others of their kind. A rate counts once, however often it was run."""

    def both(name: str, unit: str, aim: float) -> str:
        of_rates = statistics.fmean(abs(errors.of_means[name]) for errors in rates)
        of_runs = statistics.fmean(
            statistics.fmean(map(abs, getattr(errors, name))) for errors in rates
        )
        return f"**{of_rates:.1f}{unit}** (aim {aim:g}{unit}), single runs {of_runs:.1f}{unit}"

    over_scales = [statistics.fmean(errors.attainment_over_scales) for errors in rates]
    runs = sum(len(errors.attainment) for errors in rates)
    return (
        f"| **{model}, {strategy}** | {what} | {runs} "
        f"| {both('attainment', '', AIM_POINTS)} "
        f"| {statistics.fmean(over_scales):.1f} "
        f"| {both('ttft_p90', ' %', AIM_PERCENT)} "
        f"| {both('tpot_p90', ' %', AIM_PERCENT)} |"
    )


def _chance(model: str, strategy: str, rates: Sequence[Errors]) -> Iterator[str]:
    """How far a plan without any error would be off, in the mean, as its repeats scatter; and what
    this one is off without that: the square of a rate's error is in the mean the plan's own and
    that of its standard error."""

    def by_chance(name: str) -> float:  # the mean absolute value of a normal distribution
        return math.sqrt(2 / math.pi) * statistics.fmean(e.standard[name] for e in rates)

    def beyond(name: str) -> float:
        squares = (e.of_means[name] ** 2 - e.standard[name] ** 2 for e in rates)
        return math.sqrt(max(0.0, statistics.fmean(squares)))

    runs = sum(len(errors.attainment) for errors in rates)
    told = {
        f"{model}, {strategy} | what chance leaves of these means": (by_chance, ""),
        f"**{model}, {strategy}** | without what chance leaves": (beyond, "**"),
    }
    for what, (of, mark) in told.items():
        yield (
            f"| {what} | {runs} | {mark}{of('attainment'):.1f}{mark} | "
            f"| {mark}{of('ttft_p90'):.1f} %{mark} | {mark}{of('tpot_p90'):.1f} %{mark} |"
        )


def _spread(errors: Errors, name: str, unit: str) -> str:
    values: Sequence[float] = getattr(errors, name)
    spread = f"({min(values):+.1f} to {max(values):+.1f})"
    absolute = statistics.fmean(map(abs, values))
    return f"{errors.of_means[name]:+.1f}{unit} {spread}, absolute {absolute:.1f}{unit}"


def write(path: Path, lengths: str, setups: Sequence[Setup], rows: Sequence[Compared]) -> None:
    document = {
        "lengths": lengths,
        "setups": [asdict(setup) for setup in setups],
        "runs": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
