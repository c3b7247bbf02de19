"""How true the planner is: the same arrivals simulated with a measured profile, and run for real.

    .venv/bin/python benchmarks/planner_truth.py [--models tiny small] [--repeats 3] [--short]

For each model: `distserve profile` measures the engine's steps, then for each strategy (1P1D, and
one instance that does both) `distserve up` starts the deployment, `distserve profile serving`
measures what it adds to the steps while idle, and `distserve profile fit` makes the profile. The
deployment's capacity is measured by a burst. Then the bench client offers Poisson arrivals at
shares of it, and the planner's simulator is given the very same requests and instants.

The engine that prefills has core 0 to itself; all else (decode engine, gateway, migrators and this
client) shares core 1, so that what the others take is a cost of each token and can be measured.
`tiny` is the model that ships; `small` a random Llama (hidden 512, 8 layers, 27 M parameters,
float32). One table is printed, and everything is written to --output as JSON. The aims hold for
the mean over rates up to 90 % of the measured capacity; beyond it figures are only reported.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvloop
import yaml

from distserve.bench.client import Client, Target
from distserve.bench.openloop import Observed, offer
from distserve.bench.outcome import Planned
from distserve.bench.plan import Recipe
from distserve.bench.question import Pair
from distserve.bench.synthetic import synthetic
from distserve.models.builtin import builtin_path
from distserve.models.random_weights import make_random_model
from distserve.planner.links import load_link
from distserve.planner.models import ModelShape, find_model
from distserve.planner.profiles import HardwareProfile, load_profile
from distserve.planner.result import RunResult, Slo, quantile
from distserve.planner.simulator import InstanceSpec, Simulation
from distserve.planner.strategies import Fleet, strategy_class
from distserve.workload import ArrivalProcess, Trace

LENGTHS = "lognormal,prompt=128/256,output=32/64,limit=640"
POPULATION = 4000
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, KV_CACHE = 32, 1024, 128
GRID = "1,2,4,8,16,32:16,64,128,256,512"
SHARES = (0.3, 0.6, 0.9, 1.0)
KNEE = 0.9
"""Beyond this share of the capacity figures are reported and not judged."""
SLO_TTFT, SLO_TPOT = 6.0, 3.0
"""Targets: times what an unloaded deployment gives (by the fit, for a mean request)."""
AIM_POINTS, AIM_PERCENT = 2.0, 10.0
OTHERS_CORE = 1
STRATEGIES = ("Disaggregated", "Colocated")
PORT = 18080
COMMAND = [sys.executable, "-m", "distserve.cli.main"]


@dataclass(frozen=True)
class Seen:
    """Figures of one run, real or simulated."""

    attainment: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    tpot_p50_ms: float
    tpot_p90_ms: float


@dataclass(frozen=True)
class Compared:
    """One rate with one seed."""

    model: str
    strategy: str
    share: float
    rate: float
    seed: int
    requests: int
    real: Seen
    simulated: Seen
    client_lag_p99_ms: float
    others_cpu: float
    """Cores that processes of others took meanwhile."""
    real_ms: list[tuple[float, float]]
    """TTFT and TPOT of each request, in order of arrival."""


@dataclass(frozen=True)
class Setup:
    """What a model's runs with one strategy have in common."""

    model: str
    strategy: str
    capacity: float
    simulated_capacity: float
    slo_ttft_ms: float
    slo_tpot_ms: float
    profile: dict[str, Any]
    """As the planner reads it."""


@dataclass(frozen=True)
class Errors:
    """Of one rate, over its repeats: points, and percent of the real figure."""

    attainment: list[float]
    ttft_p90: list[float]
    tpot_p90: list[float]

    @classmethod
    def of(cls, rows: Sequence[Compared]) -> "Errors":
        def percent(name: str) -> list[float]:
            pairs = [(getattr(r.simulated, name), getattr(r.real, name)) for r in rows]
            return [100 * (simulated / real - 1) for simulated, real in pairs]

        points = [r.simulated.attainment - r.real.attainment for r in rows]
        return cls(points, percent("ttft_p90_ms"), percent("tpot_p90_ms"))


# ---- the real one --------------------------------------------------------------------------------


def deployment(model: str, folder: Path, strategy: str) -> dict[str, Any]:
    role = {
        "instancesPerUnit": 1,
        "scheduling": {
            "maxNumSeqs": MAX_NUM_SEQS, "maxNumBatchedTokens": MAX_NUM_BATCHED_TOKENS,
        },
    }  # fmt: skip
    source = {"builtin": "tiny"} if model == "tiny" else {"hostPath": str(folder)}
    roles = ("prefill", "decode") if strategy == "Disaggregated" else ("hybrid",)
    return {
        "apiVersion": "distserve.io/v1alpha1",
        "kind": "DistServeDeployment",
        "metadata": {"name": "truth"},
        "spec": {
            "model": {"id": model, "source": source},
            "accelerator": {"type": "CPU", "cpusPerRank": 1, "kvCache": f"{KV_CACHE}Mi"},
            "strategy": {"name": strategy},
            **{name: role for name in roles},
        },
    }


@contextlib.contextmanager
def running(manifest: Path) -> Iterator[str]:
    """The gateway's URL."""
    up = subprocess.Popen(
        ["taskset", "-c", "0,1", *COMMAND, "up", "-f", str(manifest), "--port", str(PORT)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert up.stdout
    try:
        line = up.stdout.readline()
        if not line.startswith("ready "):
            raise SystemExit(f"`distserve up` did not get ready: {line!r}")
        for process in psutil.Process(up.pid).children(recursive=True):
            pin(process.pid, 0 if _prefills(process) else OTHERS_CORE)
        yield line.split()[1]
    finally:
        up.terminate()
        up.wait(60)


def _prefills(process: psutil.Process) -> bool:
    words = process.cmdline()
    return "engine" in words and "--role" in words and "decode" not in words


def pin(pid: int, core: int) -> None:
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, {core})


async def run_for_real(url: str, model: str, plan: Sequence[Planned]) -> Observed:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        client = Client(http, Target(url, model))
        for request in plan[:3]:
            assert not isinstance(request.prompt, str)
            body = client.target.body(request.prompt[::-1], request.output_tokens)
            await client.send(request, body, time.perf_counter())
        observed = await offer(plan, client)
    failures = {o.failure for o in observed.outcomes if o.failure}
    if failures:
        raise SystemExit(f"requests failed: {failures}")
    return observed


def offered(url: str, model: str, plan: Sequence[Planned]) -> Observed:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_for_real(url, model, plan))


def plan_of(requests: int, rate: float, seed: int) -> list[Planned]:
    arrivals = ArrivalProcess("poisson", seed=seed)
    return Recipe(synthetic(LENGTHS, POPULATION, 0), arrivals, seed).plan(Pair(requests, rate))


def capacity_of(url: str, model: str, seconds: float) -> float:
    """Completions a second while more is offered than a burst is served at, in the steady part."""
    observed = offered(url, model, plan_of(60, float("inf"), 98))
    began, ended = (f(o.ended for o in observed.outcomes) for f in (min, max))
    plan = overload(60 / (ended - began), seconds)
    observed = offered(url, model, plan)
    return steady([o.ended - observed.started for o in observed.outcomes], plan)


def overload(burst_rate: float, seconds: float) -> list[Planned]:
    rate = 1.3 * burst_rate
    return plan_of(max(60, round(rate * seconds)), rate, 99)


def steady(ends: Sequence[float], plan: Sequence[Planned]) -> float:
    """Ends a second in the later half of the arrivals."""
    last = plan[-1].at_seconds
    return sum(last / 2 < end <= last for end in ends) / (last / 2)


def times_of(observed: Observed) -> list[tuple[float, float]]:
    pairs = [(o.ttft or 0.0, o.tpot or 0.0) for o in observed.outcomes]
    return [(round(1000 * ttft, 3), round(1000 * tpot, 4)) for ttft, tpot in pairs]


def seen(times_ms: Sequence[tuple[float, float]], slo: Slo) -> Seen:
    met = sum(ttft <= slo.ttft_ms and tpot <= slo.tpot_ms for ttft, tpot in times_ms)
    ttft, tpot = (sorted(column) for column in zip(*times_ms, strict=True))
    return Seen(
        100 * met / len(times_ms),
        quantile(ttft, 50), quantile(ttft, 90), quantile(tpot, 50), quantile(tpot, 90),
    )  # fmt: skip


# ---- the simulated one ---------------------------------------------------------------------------


def fleet_of(strategy: str, profile: HardwareProfile, model: ModelShape) -> Fleet:
    serving = profile.serving(model, 1)
    spec = InstanceSpec(
        profile.times(model, 1),
        kv_tokens=(KV_CACHE << 20) // model.kv_bytes_per_token,
        max_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        max_requests=MAX_NUM_SEQS,
        request_ms=serving.request_ms,
    )
    if strategy == "Colocated":
        return Fleet(spec, None, 1, 0)
    return Fleet(
        spec, spec, link=load_link(), kv_bytes_per_token=model.kv_bytes_per_token,
        handover_ms=serving.handover_ms,
    )  # fmt: skip


def simulate(strategy: str, fleet: Fleet, plan: Sequence[Planned]) -> RunResult:
    trace = Trace(
        [r.prompt_tokens for r in plan],
        [r.output_tokens for r in plan],
        [1000 * r.at_seconds for r in plan],
    )
    simulation = Simulation(trace)
    return simulation.run(strategy_class(strategy)(simulation, fleet))


def slo_of(profile: HardwareProfile, model: ModelShape) -> Slo:
    times, serving = profile.times(model, 1), profile.serving(model, 1)
    return Slo(
        round(SLO_TTFT * (serving.request_ms + times.prefill_ms(128, 128**2))),
        round(SLO_TPOT * times.decode_ms(1, 144), 1),
    )


# ---- side by side --------------------------------------------------------------------------------


def compare(
    options: argparse.Namespace, scratch: Path, model: str, setups: list[Setup]
) -> Iterator[Compared]:
    folder = builtin_path("tiny") if model == "tiny" else scratch / "small"
    if model == "small":
        make_random_model(
            folder, "llama", hidden_size=512, layers=8, heads=8, kv_heads=4, vocab_size=4096,
            max_positions=2048,
        )  # fmt: skip
    measured = options.scratch / f"{model}.sqlite"
    profile_engine(model, folder, measured, options.short)
    for strategy in options.strategies:
        database = options.scratch / f"{model}-{strategy}.sqlite"
        shutil.copy(measured, database)  # what a deployment adds depends on where it puts what
        manifest = scratch / f"{model}-{strategy}.yaml"
        manifest.write_text(yaml.safe_dump(deployment(model, folder, strategy)))
        with running(manifest) as url:
            call("profile", "serving", "--db", database, "--url", url, "--model", model)
            fitted = database.with_suffix(".json")
            call("profile", "fit", "--db", database, "--output", fitted)
            profile, shape = load_profile(str(fitted)), find_model(str(folder))
            fleet, slo = fleet_of(strategy, profile, shape), slo_of(profile, shape)
            capacity = capacity_of(url, model, options.seconds)
            simulated = simulated_capacity(strategy, fleet, capacity, options.seconds)
            print(
                f"{model} {strategy}: capacity {capacity:.1f} requests/s, simulated "
                f"{simulated:.1f}; SLO {slo.ttft_ms:g}/{slo.tpot_ms:g} ms",
                flush=True,
            )
            setups.append(
                Setup(
                    model, strategy, capacity, simulated, slo.ttft_ms, slo.tpot_ms,
                    json.loads(fitted.read_text()),
                )
            )  # fmt: skip
            for share in options.shares:
                rate = share * capacity
                requests = max(40, min(400, round(rate * options.seconds)))
                for seed in range(1, options.repeats + 1):
                    plan = plan_of(requests, rate, seed)
                    busy = Busy()
                    observed = offered(url, model, plan)
                    others = busy.others()
                    result = simulate(strategy, fleet, plan)
                    pairs = list(zip(result.ttft_ms, result.tpot_ms, strict=True))
                    row = Compared(
                        model, strategy, share, rate, seed, requests,
                        seen(times_of(observed), slo), seen(pairs, slo),
                        observed.lag.send_p99_ms, others, times_of(observed),
                    )  # fmt: skip
                    print(f"  {line(row)}", flush=True)
                    yield row


def simulated_capacity(strategy: str, fleet: Fleet, real: float, seconds: float) -> float:
    plan = overload(2 * real, seconds)
    return steady([end / 1000 for end in simulate(strategy, fleet, plan).finish_ms], plan)


class Busy:
    """Cores in use by processes that are not ours, over an interval."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._all, self._ours = self._used()

    def others(self) -> float:
        whole, ours = self._used()
        return ((whole - self._all) - (ours - self._ours)) / (time.perf_counter() - self._began)

    @staticmethod
    def _used() -> tuple[float, float]:
        times, me = psutil.cpu_times(), psutil.Process()
        ours = 0.0
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                ours += sum(process.cpu_times()[:2])
        return times.user + times.system + times.nice, ours


def profile_engine(model: str, folder: Path, database: Path, short: bool) -> None:
    source = "builtin:tiny" if model == "tiny" else folder
    grid = "1,4,16:16,64,256" if short else GRID
    call(
        "profile", "--repeats", 2, "--db", database, "--model", source,
        "--served-name", model, "--grid", grid,
        "--kv-cache", f"{KV_CACHE}Mi", "--max-num-seqs", MAX_NUM_SEQS,
        "--max-num-batched-tokens", MAX_NUM_BATCHED_TOKENS, core=0,
    )  # fmt: skip


def call(*words: object, core: int = OTHERS_CORE) -> None:
    began = time.perf_counter()
    command = ["taskset", "-c", str(core), *COMMAND, *map(str, words)]
    subprocess.run(command, check=True)
    print(f"  ({' '.join(map(str, words[:2]))}: {time.perf_counter() - began:.0f} s)", flush=True)


def line(row: Compared) -> str:
    real, simulated = row.real, row.simulated

    def pair(name: str) -> str:
        return f"{getattr(real, name):.1f}/{getattr(simulated, name):.1f}"

    return (
        f"{row.share:4.0%} {row.rate:5.1f}/s seed {row.seed}, real/simulated: attainment "
        f"{pair('attainment')}; TTFT p50 {pair('ttft_p50_ms')}, p90 {pair('ttft_p90_ms')}; TPOT "
        f"p50 {pair('tpot_p50_ms')}, p90 {pair('tpot_p90_ms')}; client lag p99 "
        f"{row.client_lag_p99_ms:.1f} ms, others {row.others_cpu:.2f} cores"
    )


def summarise(rows: Sequence[Compared]) -> Iterator[str]:
    """Errors of simulated against real: mean of the absolute ones, and least to most."""
    yield "| model, strategy | rate of capacity | attainment, points | TTFT p90 | TPOT p90 |"
    yield "|---|---|---|---|---|"
    groups: dict[tuple[str, str], dict[float, list[Compared]]] = {}
    for row in rows:
        groups.setdefault((row.model, row.strategy), {}).setdefault(row.share, []).append(row)
    for (model, strategy), by_share in groups.items():
        judged: list[Errors] = []
        for share, members in by_share.items():
            errors = Errors.of(members)
            if share <= KNEE:
                judged.append(errors)
            mark = "" if share <= KNEE else " (not judged)"
            yield (
                f"| {model}, {strategy} | {share:.0%}, {members[0].rate:.1f}/s{mark} "
                f"| {spread(errors.attainment, '')} | {spread(errors.ttft_p90, ' %')} "
                f"| {spread(errors.tpot_p90, ' %')} |"
            )
        if judged:
            cells = (
                statistics.fmean(abs(e) for errors in judged for e in getattr(errors, name))
                for name in ("attainment", "ttft_p90", "tpot_p90")
            )
            points, ttft, tpot = cells
            yield (
                f"| **{model}, {strategy}** | mean up to {KNEE:.0%} | **{points:.1f}** (aim "
                f"{AIM_POINTS:g}) | **{ttft:.0f} %** (aim {AIM_PERCENT:g} %) | **{tpot:.0f} %** |"
            )


def spread(values: Sequence[float], unit: str) -> str:
    middle = statistics.fmean(map(abs, values))
    return f"{middle:.1f}{unit} ({min(values):+.1f} to {max(values):+.1f})"


def write(path: Path, setups: Sequence[Setup], rows: Sequence[Compared]) -> None:
    document = {
        "lengths": LENGTHS,
        "setups": [asdict(setup) for setup in setups],
        "runs": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=("tiny", "small"), default=["small", "tiny"])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of arrivals in a run")
    parser.add_argument("--output", type=Path, default=Path("planner_truth.json"))
    parser.add_argument("--scratch", type=Path, help="keep databases and profiles here")
    parser.add_argument("--short", action="store_true", help="a coarse grid, to see that it runs")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    pin(os.getpid(), OTHERS_CORE)
    rows: list[Compared] = []
    setups: list[Setup] = []
    with tempfile.TemporaryDirectory() as scratch:
        options.scratch = options.scratch or Path(scratch)
        options.scratch.mkdir(parents=True, exist_ok=True)
        for model in options.models:
            for row in compare(options, Path(scratch), model, setups):
                rows.append(row)
                write(options.output, setups, rows)
    for text in summarise(rows):
        print(text)


if __name__ == "__main__":
    main()
