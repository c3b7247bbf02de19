"""What planning costs, each figure beside its aim.

Run: python benchmarks/planner.py [--quick]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distserve.planner.compat.search import (
    Configuration,
    Search,
    disaggregated_configurations,
)
from distserve.planner.fleets import instance_spec
from distserve.planner.models import find_model
from distserve.planner.profiles import load_profile
from distserve.planner.result import Slo
from distserve.planner.simulator import Simulation
from distserve.planner.strategies import Fleet, strategy_class
from distserve.workload import ArrivalProcess, RequestSet
from distserve.workload.lengths import from_summary

README_SET = Path(__file__).parents[1] / "tests/planner/data/requests_readme_set.csv.gz"


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def readme_command() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "distserve.cli.simulate", "search", "--requests", str(README_SET)],
        capture_output=True,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print("README search (OPT-13B, 1 node x 4), whole process:")
    print(f"  {done.stdout.splitlines()[0]}")
    print(f"  CPU {cpu:.2f} s (aim 0.7; reference 35 s in two processes), wall {wall:.2f} s")
    print(f"  peak memory {after.ru_maxrss / 1024:.0f} MB (aim below 100; reference 380 MB)")


def large_search(requests: RequestSet, slo: Slo) -> None:
    model, profile = find_model("66b"), load_profile()
    for high_affinity in (False, True):
        search = Search(model, profile, requests.sample(300, 0), ArrivalProcess(), slo)
        tried = list(disaggregated_configurations(model, 4, 8, high_affinity))
        cost = cpu_seconds(lambda s=search, t=tried: [s.best_rate(c, 5, 0.25) for c in t])  # type: ignore[misc]
        where = "high" if high_affinity else "low"
        print(
            f"  SLO {slo.ttft_ms:g}/{slo.tpot_ms:g} ms, {where} affinity, {len(tried)} "
            f"configurations: {cost:.1f} s of one core (aim 10 s on 2 cores)"
        )


def growth_with_requests(counts: list[int]) -> None:
    model, profile = find_model("13b"), load_profile()
    population = from_summary((755, 1608), (200, 447), 2048, 20_000)
    print("cost over requests (linear is a constant last column):")
    for count in counts:
        requests = population.resample(count, 0)
        search = Search(model, profile, requests, ArrivalProcess(), Slo(200, 100))
        search.trace(4.0)
        compat = cpu_seconds(lambda s=search: s.run(Configuration(1, 2, 1, 1, 1), 4.0))  # type: ignore[misc]
        fleet = Fleet(instance_spec(model, profile, 2, 1), instance_spec(model, profile, 1, 1))

        def default(requests: RequestSet = requests, fleet: Fleet = fleet) -> None:
            simulation = Simulation(ArrivalProcess().trace(requests, 4.0))
            simulation.run(strategy_class("Disaggregated")(simulation, fleet))

        whole = cpu_seconds(default)
        print(
            f"  N {count:7d}: compat {compat:7.3f} s  {1e6 * compat / count:6.1f} us/request"
            f"   default {whole:7.3f} s  {1e6 * whole / count:6.1f} us/request"
        )


def growth_with_output(lengths: list[int]) -> None:
    model, profile = find_model("13b"), load_profile()
    print("cost over output length, one circulating batch (far below linear):")
    for length in lengths:
        requests = RequestSet([200] * 50, [length] * 50)
        arrivals = ArrivalProcess("burst", burst_size=50)
        search = Search(model, profile, requests, arrivals, Slo(200, 100))
        cost = min(
            cpu_seconds(lambda s=search: s.run(Configuration(1, 1, 1, 1, 1), 1.0))  # type: ignore[misc]
            for _ in range(5)
        )
        print(f"  output {length:6d} tokens: {1000 * cost:.3f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    args = parser.parse_args()
    readme_command()
    print("OPT-66B, 4 nodes x 8, all configurations:")
    requests = from_summary((755, 1608), (200, 447), 2048, 20_000)
    for slo in (Slo(400, 100), Slo(2500, 150)):
        large_search(requests, slo)
    growth_with_requests([300, 3000] if args.quick else [300, 1000, 3000, 10_000, 30_000, 100_000])
    growth_with_output([100, 800] if args.quick else [50, 100, 200, 400, 800])


if __name__ == "__main__":
    main()
