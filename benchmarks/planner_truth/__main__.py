"""How true the planner is: the same arrivals simulated with a measured profile, and run for real.

    .venv/bin/python -m benchmarks.planner_truth [--models tiny small] [--repeats 3] [--short]

For each model: `distserve profile` measures the engine's steps, then for each strategy (1P1D, and
one instance that does both) `distserve up` starts the deployment, `distserve profile serving`
measures what it adds to the steps, and `distserve profile fit` makes the profile. The deployment's
capacity is measured by a burst. Then the bench client offers Poisson arrivals at shares of it, and
the planner's simulator is given the very same requests and instants.

One table is printed, and everything is written to --output as JSON. The aims hold for the mean
over rates up to 90 % of the measured capacity; beyond it figures are only reported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count, islice
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
    call,
    manifest,
    model_folder,
    pin,
    running,
)
from benchmarks.planner_truth.figures import Compared, Seen, Setup

from distserve.planner.models import find_model
from distserve.planner.profiles import load_profile

GRID, SHORT_GRID = "1,2,4,8,16,32:16,64,256,512", "1,4,16:16,64,256"
SHARES = (0.3, 0.6, 0.9)


def compare(
    options: argparse.Namespace, scratch: Path, model: str, setups: list[Setup]
) -> Iterator[Compared]:
    folder = model_folder(model, scratch)
    measured = scratch / f"{model}.sqlite"
    profile_engine(model, folder, measured, options.short)
    for strategy in options.strategies:
        database = scratch / f"{model}-{strategy}.sqlite"
        shutil.copy(measured, database)  # what a deployment adds depends on where it puts what
        with running(manifest(model, folder, strategy), scratch) as url:
            call("profile", "serving", "--db", database, "--url", url, "--model", model)
            fitted = database.with_suffix(".json")
            call("profile", "fit", "--db", database, "--output", fitted)
            profile, shape = load_profile(str(fitted)), find_model(str(folder))
            fleet = simulating.fleet_of(strategy, profile, shape)
            slo = simulating.slo_of(profile, shape)
            capacity, told_by = offering.capacity_of(url, model, options.seconds)
            setup = Setup(
                model, strategy, capacity,
                simulating.simulated_capacity(strategy, fleet, told_by),
                slo.ttft_ms, slo.tpot_ms, json.loads(fitted.read_text()),
            )  # fmt: skip
            print(telling.setup_line(setup), flush=True)
            setups.append(setup)
            seeds = count(1)
            for share in options.shares:
                rate = share * capacity
                requests = max(40, min(400, round(rate * options.seconds)))
                for seed in islice(seeds, options.repeats):
                    plan = offering.plan_of(requests, rate, seed)
                    busy = Busy()
                    observed = offering.offered(url, model, plan)
                    others = busy.others()
                    real = offering.requests_of(observed)
                    simulated = simulating.simulate(strategy, fleet, plan)
                    row = Compared(
                        model, strategy, share, rate, seed, requests,
                        Seen.of(real, slo), Seen.of(simulated, slo),
                        observed.lag.send_p99_ms, others, real, simulated,
                    )  # fmt: skip
                    print(f"  {telling.run_line(row)}", flush=True)
                    yield row


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
    parser.add_argument("--seconds", type=float, default=8.0, help="of arrivals in a run")
    parser.add_argument("--output", type=Path, default=Path("planner_truth.json"))
    parser.add_argument("--scratch", type=Path, help="keep databases and profiles here")
    parser.add_argument("--short", action="store_true", help="a coarse grid, to see that it runs")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    pin(os.getpid(), OTHERS_CORE)
    rows: list[Compared] = []
    setups: list[Setup] = []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        for model in options.models:
            for row in compare(options, scratch, model, setups):
                rows.append(row)
                telling.write(options.output, offering.LENGTHS, setups, rows)
    for text in telling.summary(rows):
        print(text)


if __name__ == "__main__":
    main()
