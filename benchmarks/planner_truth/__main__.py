"""How true the planner is: the same arrivals simulated with a measured profile, and run for real.

    .venv/bin/python -m benchmarks.planner_truth [--models tiny small] [--repeats 6] [--short]

For each model: `distserve profile` measures the engine's steps, then for each strategy (1P1D, and
one instance that does both) `distserve up` starts the deployment. Its capacity is what it serves
while more requests come than it can serve. Then the bench client offers Poisson arrivals at shares
of it, and the planner's simulator is given the very same requests and instants.

What the deployment adds to the steps is measured as `distserve profile serving` does, but amid the
runs: before, between and after them, since a machine may become another one within a minute. No run
is fitted to. What is simulated is drawn several times, each with the machine slow at other moments:
in the pace of all these loads, and in that of the two that pass right before and after the run.
Beside it stands what is simulated with the machine as slow in each second as the run's own steps
tell: what is off there is the simulator's. And how far two real runs of the same arrivals are
apart: who does not know the machine's next minute can hardly be closer.

One table is printed, and everything is written to --output as JSON; what was measured stays in
--scratch, and --again judges it anew, also several measurements together. A run beside which other
work ran is not judged. The aims hold for the mean over rates up to 90 % of the measured capacity;
beyond it figures are only reported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import fmean

from benchmarks.planner_truth import offering, simulating, telling
from benchmarks.planner_truth.deployment import (
    ENGINES_CORE,
    KV_CACHE_MIB,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    MODELS,
    OTHERS_CORE,
    STRATEGIES,
    Busy,
    Failed,
    call,
    manifest,
    model_folder,
    pin,
    running,
)
from benchmarks.planner_truth.figures import Compared, Request, Seen, Setup
from benchmarks.planner_truth.measured import Measured, Run, held, keep, kept

from distserve.planner.fitting import fit_database, profile_text
from distserve.planner.load_fit import fit_loads
from distserve.planner.load_pace import pace_of
from distserve.planner.models import find_model
from distserve.planner.pace import Pace
from distserve.planner.profiles import load_profile
from distserve.planner.result import Slo
from distserve.planner.strategies import Fleet

GRID, SHORT_GRID = "1,2,3,4,5,6,7,8,12,16,24,32:16,64,256,512", "1,3,4,7,16:16,64,256"
ROUNDS = {"tiny": 8, "small": 4}
"""Over the grid: what is slow in one is not in others."""
SHARES = (0.3, 0.6, 0.9)
LOADS = (1, 8), (2, 16), (4, 32)
"""Clients of the loads around a run, in turn."""


@dataclass
class Found:
    setups: list[Setup] = field(default_factory=list)
    rows: list[Compared] = field(default_factory=list)
    failed: bool = False

    @contextlib.contextmanager
    def attempt(self, *of: str) -> Iterator[None]:
        """What fails is told, and leaves what follows alone."""
        try:
            yield
        except (Failed, subprocess.CalledProcessError) as error:
            self.failed = True
            print(f"{' '.join(of)}: {error}", file=sys.stderr, flush=True)


def compare(options: argparse.Namespace, scratch: Path, found: Found) -> None:
    """Every model with every strategy."""
    for model in options.models:
        with found.attempt(model):
            folder = model_folder(model, scratch)
            profile_engine(model, folder, steps_of(model, scratch), options.short)
            for strategy in options.strategies:
                compare_one(options, model, folder, strategy, scratch, found)


def compare_one(
    options: argparse.Namespace,
    model: str,
    folder: Path,
    strategy: str,
    scratch: Path,
    found: Found,
) -> None:
    measured, began = Measured(), time.perf_counter()
    try:
        with (
            found.attempt(model, strategy),
            running(manifest(model, folder, strategy), scratch) as url,
        ):
            measure(options, model, url, measured)
    finally:  # interrupted or failed, it judges the runs before
        print(f"  (runs: {time.perf_counter() - began:.0f} s)", flush=True)
        if measured.runs:
            keep(measured, scratch, model, strategy)
            with found.attempt(model, strategy):
                judge(model, strategy, scratch, measured, found)
            telling.write(options.output, offering.LENGTHS, found.setups, found.rows)


def compare_again(options: argparse.Namespace, found: Found) -> None:
    """What was measured before; several measurements of a setup are judged as one, each with the
    profile of its own day."""
    for model, strategy in product(options.models, options.strategies):
        scratches = [some for some in options.scratch if held(some, model, strategy)]
        for scratch in scratches or options.scratch[:1]:
            with found.attempt(model, strategy):
                judge(model, strategy, scratch, kept(scratch, model, strategy), found)
    telling.write(options.output, offering.LENGTHS, found.setups, found.rows)


def order_of(repeats: Sequence[int]) -> list[tuple[int, int]]:
    """(share's index, its repeat): the repeats of each share spread over the whole measurement."""
    runs = [(index, repeat) for index, n in enumerate(repeats) for repeat in range(n)]
    return sorted(runs, key=lambda run: (run[1] + 0.5) / repeats[run[0]])


def measure(options: argparse.Namespace, model: str, url: str, measured: Measured) -> None:
    measured.overloads, measured.capacity = offering.overloaded(url, model, options.seconds)
    measured.loads.append(offering.load_of(url, model, LOADS[0], 0))
    for index, repeat in order_of(options.repeats):
        share = options.shares[index]
        rate = share * measured.capacity
        requests = max(40, min(400, round(rate * options.seconds)))
        # Two repeats have the same arrivals: how far they are apart is no simulator's fault.
        seed = 1 + repeat // 2 * len(options.shares) + index
        plan = offering.plan_of(requests, rate, seed)
        if repeat % 2:
            plan = offering.with_other_prompts(plan)
        busy = Busy()
        observed = offering.offered(url, model, plan)
        run = Run(share, rate, seed, plan, observed, busy.others())
        nth = len(measured.loads)
        # Not in step with the shares: each has all kinds of loads beside it.
        clients = LOADS[(nth + nth // len(LOADS)) % len(LOADS)]
        measured.loads.append(offering.load_of(url, model, clients, nth))
        measured.runs.append(run)


def judge(model: str, strategy: str, scratch: Path, measured: Measured, found: Found) -> None:
    (engine,) = fit_database(steps_of(model, scratch)).values()
    loads = measured.loads_at_rest()
    if not loads:
        raise Failed(f"{scratch}: other work beside every run; measure on a machine at rest")
    added = fit_loads([load for some in loads for load in some], engine.times)
    fitted = scratch / f"{model}-{strategy}.json"
    fitted.write_text(profile_text({(model, 1): replace(engine, serving=added)}))
    profile, shape = load_profile(str(fitted)), find_model(str(model_folder(model, scratch)))
    fleet = simulating.fleet_of(strategy, profile, shape)
    slo = simulating.slo_of(profile, shape)
    setup = Setup(
        model, strategy, measured.capacity,
        fmean(simulating.simulated_capacity(strategy, fleet, some) for some in measured.overloads),
        slo.ttft_ms, slo.tpot_ms, json.loads(fitted.read_text()),
    )  # fmt: skip
    found.setups.append(setup)
    print(telling.setup_line(setup), flush=True)
    for nth, run in enumerate(measured.runs):
        if not run.at_rest:
            print(f"  {telling.disturbed_line(run)}", flush=True)
            continue
        beside = [load for some in measured.loads[nth : nth + 2] for load in some]
        its_own = [offering.load_like(run.observed)]
        paces = [pace_of(some, engine.times, added) for some in (beside, its_own)]
        found.rows.append(compared(len(found.setups), setup, fleet, slo, run, *paces))
        print(f"  {telling.run_line(found.rows[-1])}", flush=True)


def compared(
    measurement: int, setup: Setup, fleet: Fleet, slo: Slo, run: Run, beside: Pace, pace: Pace
) -> Compared:  # fmt: skip
    def drawn(fleet: Fleet) -> list[list[Request]]:
        fleets = simulating.draws_of(fleet)
        return [simulating.simulate(setup.strategy, one, run.plan) for one in fleets]

    def mean(draws: list[list[Request]]) -> Seen:
        return Seen.mean([Seen.of(one, slo) for one in draws])

    real, draws = offering.requests_of(run.observed), drawn(fleet)
    paced = simulating.simulate(setup.strategy, simulating.at_pace(fleet, pace), run.plan)
    return Compared(
        setup.model, setup.strategy, measurement, run.share, run.rate, run.seed, len(run.plan),
        Seen.of(real, slo), mean(draws), mean(drawn(simulating.at_pace(fleet, beside))),
        Seen.of(paced, slo), pace, run.observed.lag.send_p99_ms, run.others_cpu, real, draws[0],
    )  # fmt: skip


def steps_of(model: str, scratch: Path) -> Path:
    """The database of the engine's measured steps."""
    return scratch / f"{model}.sqlite"


def profile_engine(model: str, folder: Path, database: Path, short: bool) -> None:
    call(
        "profile", "--repeats", ROUNDS[model], "--db", database, "--model",
        "builtin:tiny" if model == "tiny" else folder,
        "--served-name", model, "--grid", SHORT_GRID if short else GRID,
        "--kv-cache", f"{KV_CACHE_MIB}Mi", "--max-num-seqs", MAX_NUM_SEQS,
        "--max-num-batched-tokens", MAX_NUM_BATCHED_TOKENS, core=ENGINES_CORE,
    )  # fmt: skip


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner_truth", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument(
        "--repeats", nargs="+", type=int, default=[6],
        help="of each rate, in pairs; one number, or one for each share, since runs scatter more "
        "the higher the rate",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals in a run")
    parser.add_argument("--output", type=Path, default=Path("planner_truth.json"))
    parser.add_argument(
        "--scratch", nargs="+", type=Path, default=[], help="keep databases and profiles here"
    )
    parser.add_argument(
        "--again", action="store_true",
        help="judge what is in --scratch, measure nothing; several are judged together",
    )  # fmt: skip
    parser.add_argument("--short", action="store_true", help="a coarse grid, to see that it runs")
    options = parser.parse_args()
    if len(options.repeats) == 1:
        options.repeats *= len(options.shares)
    if len(options.repeats) != len(options.shares):
        parser.error("--repeats takes one number, or as many as --shares")
    if options.again and not options.scratch:
        parser.error("--again needs the --scratch of the run that measured")
    if len(options.scratch) > 1 and not options.again:
        parser.error("several of --scratch are for --again")
    os.environ["OMP_NUM_THREADS"] = "1"
    pin(os.getpid(), OTHERS_CORE)
    found = Found()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch[0] if options.scratch else Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            if options.again:
                compare_again(options, found)
            else:
                compare(options, scratch, found)
        finally:  # interrupted, it tells of what was compared so far
            for text in telling.summary(found.rows):
                print(text)
    sys.exit(found.failed)


if __name__ == "__main__":
    main()
