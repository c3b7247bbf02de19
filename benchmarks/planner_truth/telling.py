"""What is printed and written of the comparison."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.planner_truth.figures import SCALES, STAGES, Compared, Errors, Pace, Setup

KNEE = 0.9
"""Beyond this share of the capacity figures are reported and not judged."""
AIM_POINTS, AIM_PERCENT = 2.0, 10.0


def setup_line(setup: Setup) -> str:
    return (
        f"{setup.model} {setup.strategy}: capacity {setup.capacity:.1f} requests/s, simulated "
        f"{setup.simulated_capacity:.1f}; SLO {setup.slo_ttft_ms:g}/{setup.slo_tpot_ms:g} ms"
    )


def run_line(row: Compared) -> str:
    real, simulated, as_profiled = row.real, row.simulated, row.as_profiled

    def pair(name: str) -> str:
        return f"{getattr(real, name):.1f}/{getattr(simulated, name):.1f}"

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
        f"pace before {_pace(row.before)}, after {_pace(row.after)}; "
        f"as profiled: attainment {as_profiled.attainment[1.0]:.1f}, TTFT p90 "
        f"{as_profiled.ttft_p90_ms:.1f}, TPOT p90 {as_profiled.tpot_p90_ms:.1f}"
    )


def summary(rows: Sequence[Compared]) -> Iterator[str]:
    """Errors of simulated against real. Of a rate: the mean over its repeats, and of the absolute
    ones; least to most. Of runs during which the machine kept its pace, and all of them where there
    was none."""
    scales = ", ".join(f"{scale:g}" for scale in SCALES)
    yield f"(over scales: mean attainment error with the SLO's times {scales} times)"
    yield (
        "| model, strategy | rate of capacity | runs at one pace | attainment, points "
        "| over scales | TTFT p90 | TPOT p90 |"
    )
    yield "|---|---|---|---|---|---|---|"
    groups: dict[tuple[str, str], dict[float, list[Compared]]] = {}
    for row in rows:
        groups.setdefault((row.model, row.strategy), {}).setdefault(row.share, []).append(row)
    for (model, strategy), by_share in groups.items():
        judged: list[list[Compared]] = []
        for share, members in by_share.items():
            steady = [row for row in members if row.steady]
            if share <= KNEE and steady:
                judged.append(steady)
            mark = "" if share <= KNEE and steady else " (not judged)"
            errors = Errors.of([(row.simulated, row.real) for row in steady or members])
            yield (
                f"| {model}, {strategy} | {share:.0%}, {members[0].rate:.1f}/s{mark} "
                f"| {len(steady)} of {len(members)} "
                f"| {_spread(errors.attainment, '')} "
                f"| {statistics.fmean(errors.attainment_over_scales):.1f} "
                f"| {_spread(errors.ttft_p90, ' %')} | {_spread(errors.tpot_p90, ' %')} |"
            )
        if judged:
            paced = [Errors.of([(r.simulated, r.real) for r in rate]) for rate in judged]
            yield _means(model, strategy, f"mean up to {KNEE:.0%}", paced)
            profiled = [Errors.of([(r.as_profiled, r.real) for r in rate]) for rate in judged]
            yield _means(model, strategy, "the same, profile as it was", profiled)


def _means(model: str, strategy: str, what: str, rates: Sequence[Errors]) -> str:
    """Over rates, of what a rate's repeats are off in the mean; and of single runs, which fall out
    otherwise than others of their kind."""

    def both(name: str, unit: str, aim: float) -> str:
        repeats: list[Sequence[float]] = [getattr(errors, name) for errors in rates]
        of_rates = statistics.fmean(abs(statistics.fmean(values)) for values in repeats)
        of_runs = statistics.fmean(abs(value) for values in repeats for value in values)
        return f"**{of_rates:.1f}{unit}** (aim {aim:g}{unit}), single runs {of_runs:.1f}{unit}"

    over_scales = [value for errors in rates for value in errors.attainment_over_scales]
    return (
        f"| **{model}, {strategy}** | {what} | {len(over_scales)} "
        f"| {both('attainment', '', AIM_POINTS)} "
        f"| {statistics.fmean(over_scales):.1f} "
        f"| {both('ttft_p90', ' %', AIM_PERCENT)} "
        f"| {both('tpot_p90', ' %', AIM_PERCENT)} |"
    )


def _pace(pace: Pace) -> str:
    return f"{pace.prefill:.2f}/{pace.decode:.2f}"


def _spread(values: Sequence[float], unit: str) -> str:
    middle, absolute = statistics.fmean(values), statistics.fmean(map(abs, values))
    spread = f"({min(values):+.1f} to {max(values):+.1f})"
    return f"{middle:+.1f}{unit} {spread}, absolute {absolute:.1f}{unit}"


def write(path: Path, lengths: str, setups: Sequence[Setup], rows: Sequence[Compared]) -> None:
    document = {
        "lengths": lengths,
        "setups": [asdict(setup) for setup in setups],
        "runs": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
