"""How true the planner is: the same arrivals simulated with a measured profile, and run for real.

    .venv/bin/python -m benchmarks.planner_truth [--models tiny small] [--repeats 3] [--short]

For each model: `distserve profile` measures the engine's steps, then for each strategy (1P1D, and
one instance that does both) `distserve up` starts the deployment, `distserve profile serving`
measures what it adds to the steps, and `distserve profile fit` makes the profile. The deployment's
capacity is what it serves while more requests come than it can serve. Then the bench client offers
Poisson arrivals at shares of it, and the planner's simulator is given the very same requests and
instants.

A machine may become another one than it was measured as: before and after each run a prompt alone
and a few streams, always the same work, tell its pace, and what is simulated is the profile at that
pace, and beside it the profile as it is. A run during which the pace changed is told, not judged,
and made again up to AGAIN times.

One table is printed, and everything is written to --output as JSON. The aims hold for the mean
over rates up to 90 % of the measured capacity; beyond it figures are only reported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

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
from benchmarks.planner_truth.figures import Compared, Pace, Seen, Setup

from distserve.planner.models import find_model
from distserve.planner.profiles import load_profile
from distserve.planner.result import Slo
from distserve.planner.strategies import Fleet

GRID, SHORT_GRID = "1,2,4,8,16,32:16,64,256,512", "1,4,16:16,64,256"
SHARES = (0.3, 0.6, 0.9)
AGAIN = 2
"""Runs at a rate that are made once more, since the machine changed meanwhile."""


@dataclass
class Found:
    setups: list[Setup] = field(default_factory=list)
    rows: list[Compared] = field(default_factory=list)
    failed: bool = False


def compare(options: argparse.Namespace, scratch: Path, found: Found) -> None:
    """Every model with every strategy; one that fails is told and leaves the others alone."""
    for model in options.models:
        folder = model_folder(model, scratch)
        measured = scratch / f"{model}.sqlite"
        profile_engine(model, folder, measured, options.short)
        for strategy in options.strategies:
            database = scratch / f"{model}-{strategy}.sqlite"
            shutil.copy(measured, database)  # what a deployment adds depends on its layout
            try:
                with running(manifest(model, folder, strategy), scratch) as url:
                    fitted = fit_profile(model, database, url)
                    compare_setup(options, model, strategy, folder, url, fitted, found)
            except (Failed, subprocess.CalledProcessError) as error:
                found.failed = True
                print(f"{model} {strategy}: {error}", file=sys.stderr, flush=True)


def compare_setup(
    options: argparse.Namespace, model: str, strategy: str, folder: Path, url: str, fitted: Path,
    found: Found,
) -> None:  # fmt: skip
    profile, shape = load_profile(str(fitted)), find_model(str(folder))
    fleet = simulating.fleet_of(strategy, profile, shape)
    slo = simulating.slo_of(profile, shape)
    pace_seeds = count(10_000)
    expected = simulating.probed(strategy, fleet)
    overload = offering.overload_of(url, model, options.seconds)
    capacity = offering.capacity_of(url, model, overload)
    simulated = simulating.simulated_capacity(strategy, fleet, overload)
    written = json.loads(fitted.read_text())
    setup = Setup(model, strategy, capacity, simulated, slo.ttft_ms, slo.tpot_ms, written)
    found.setups.append(setup)
    print(telling.setup_line(setup), flush=True)
    seeds = count(1)
    for share in options.shares:
        again, left = AGAIN, options.repeats
        while left:
            row = compare_run(
                setup, fleet, slo, share, next(seeds), options.seconds, url,
                lambda: offering.pace_of(url, model, expected, pace_seeds),
            )  # fmt: skip
            print(f"  {telling.run_line(row)}", flush=True)
            found.rows.append(row)
            telling.write(options.output, offering.LENGTHS, found.setups, found.rows)
            if row.steady or not again:
                left -= 1
            else:
                again -= 1


def compare_run(
    setup: Setup, fleet: Fleet, slo: Slo, share: float, seed: int, seconds: float, url: str,
    pace: Callable[[], Pace],
) -> Compared:  # fmt: skip
    rate = share * setup.capacity
    requests = max(40, min(400, round(rate * seconds)))
    plan = offering.plan_of(requests, rate, seed)
    before = pace()
    busy = Busy()
    observed = offering.offered(url, setup.model, plan)
    others = busy.others()
    after = pace()
    real = offering.requests_of(observed)
    as_profiled = simulating.simulate(setup.strategy, fleet, plan)
    fleet = simulating.at_pace(fleet, before.middle(after))
    simulated = simulating.simulate(setup.strategy, fleet, plan)
    return Compared(
        setup.model, setup.strategy, share, rate, seed, requests,
        Seen.of(real, slo), Seen.of(simulated, slo), Seen.of(as_profiled, slo),
        observed.lag.send_p99_ms, others, before, after, real, simulated,
    )  # fmt: skip


def fit_profile(model: str, database: Path, url: str) -> Path:
    call("profile", "serving", "--db", database, "--url", url, "--model", model)
    fitted = database.with_suffix(".json")
    call("profile", "fit", "--db", database, "--output", fitted)
    return fitted


def profile_engine(model: str, folder: Path, database: Path, short: bool) -> None:
    call(
        "profile", "--repeats", 2, "--db", database, "--model",
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
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals in a run")
    parser.add_argument("--output", type=Path, default=Path("planner_truth.json"))
    parser.add_argument("--scratch", type=Path, help="keep databases and profiles here")
    parser.add_argument("--short", action="store_true", help="a coarse grid, to see that it runs")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    pin(os.getpid(), OTHERS_CORE)
    found = Found()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            compare(options, scratch, found)
        finally:  # interrupted, it tells of what was compared so far
            for text in telling.summary(found.rows):
                print(text)
    sys.exit(found.failed)


if __name__ == "__main__":
    main()
