"""`distserve simulate run`: one simulation of one configuration at one rate."""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from distserve.planner.commands import EXIT_OK
from distserve.planner.commands.arguments import (
    add_backend,
    add_network,
    add_source,
    integer_from,
    load_hardware,
    load_requests,
    noted,
    number_in,
    number_list,
    percentile_list,
    refuse,
    refuse_in_compat,
    writing,
)
from distserve.planner.compat.search import Configuration, Search
from distserve.planner.errors import InvalidRequest
from distserve.planner.models import find_model
from distserve.planner.result import RunResult, Slo
from distserve.workload import ARRIVALS, ArrivalProcess, RequestSet

REQUESTS = 64
"""Simulated unless told otherwise, as many as the reference."""

SUMMARY_COLUMNS = (
    "backend",
    "model_type",
    "pd",
    "rate",
    "target",
    "attainment",
    "tp_prefill",
    "pp_prefill",
    "tp_decode",
    "pp_decode",
)

REQUEST_COLUMNS = (
    "req_id",
    "prompt_len",
    "output_len",
    "arrival_ms",
    "ttft_ms",
    "tpot_ms",
    "finish_ms",
)
LATENCY_COLUMNS = (
    "first_token_latency",
    "decoding_latency",
    "total_latency",
    "tpot",
    "inv_tpot_ms",
    "inv_tpot_s",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_backend(parser)
    parser.add_argument("--model", default="facebook/opt-13b", help="(%(default)s)")
    parser.add_argument("--rate", type=number_in(0), help="requests per second (all at once)")
    parser.add_argument("--N", type=integer_from(1), help=f"requests ({REQUESTS})")
    for degree in ("tp", "pp"):
        parser.add_argument(f"--{degree}-prefill", type=integer_from(1), default=1, help="(1)")
        parser.add_argument(f"--{degree}-decode", type=integer_from(0), help="(1; vllm has none)")
    parser.add_argument("--name", help="printed with the result")
    for role in ("prefill", "decode"):
        parser.add_argument(
            f"--{role}-containment",
            type=number_in(0, 100),
            help="say whether this percentile is below the target",
        )
    parser.add_argument("--output", choices=("table", "json"), default="table")
    files = parser.add_argument_group("csv files")
    files.add_argument("--output-summary", type=Path, help="attainments and targets")
    files.add_argument("--output-requests", type=Path, help="times of every request")
    files.add_argument("--output-request-info", type=Path, help="lengths of every request")
    files.add_argument("--output-request-event", type=Path, help="events of every request")
    files.add_argument("--output-request-latency", type=Path, help="latencies of every request")
    files.add_argument("--output-worker", type=Path, help="steps of every worker")
    parser.add_argument("--verbose", action="store_true", help="print the summary rows")
    add_load(parser)
    add_source(parser)
    default = parser.add_argument_group("with --no-compat")
    default.add_argument("--prefill-instances", type=integer_from(1), help="(1)")
    default.add_argument("--decode-instances", type=integer_from(1), help="(1)")
    default.add_argument(
        "--colocated-strategy",
        choices=("Colocated", "ChunkedPrefill"),
        help="how backend vllm shares its instances (Colocated)",
    )
    default.add_argument("--ngpu-per-node", type=integer_from(1), help="(8)")
    add_network(parser)


def add_load(parser: argparse.ArgumentParser) -> None:
    """Arrivals and the targets that results are judged by."""
    parser.add_argument(
        "--arrival",
        choices=(*ARRIVALS, "custom", "uniform"),
        help="(poisson; recorded for a JSON --workload) recorded, or custom, takes the file's own "
        "order and times; uniform is fixed",
    )
    parser.add_argument(
        "--cv", type=number_in(0), help="coefficient of variation of poisson and gamma gaps (1)"
    )
    parser.add_argument("--burst-size", type=integer_from(1), help="requests of one burst (10)")
    parser.add_argument("--prefill-target", type=number_in(0), default=200.0, help="TTFT in ms")
    parser.add_argument("--decode-target", type=number_in(0), default=100.0, help="TPOT in ms")
    parser.add_argument(
        "--slas", type=percentile_list, default=[85, 90, 95, 98, 99], help="percentiles to report"
    )
    parser.add_argument(
        "--slo-scales",
        type=number_list,
        default=[1.0, 0.4, 0.6, 0.8, 1.2],
        help="factors of the targets whose attainment is reported",
    )


def configuration_of(args: argparse.Namespace) -> Configuration:
    if args.backend == "vllm":
        refuse(args, "with backend vllm", "tp_decode", "pp_decode")
        return Configuration(1, args.tp_prefill, args.pp_prefill, 0, 0)
    tp, pp = (1 if n is None else n for n in (args.tp_decode, args.pp_decode))
    if not tp or not pp:
        raise InvalidRequest("--tp-decode and --pp-decode must be at least 1 for distserve")
    return Configuration(1, args.tp_prefill, args.pp_prefill, tp, pp)


def arrivals_of(args: argparse.Namespace) -> ArrivalProcess:
    # A JSON workload brings its times, as the reference has it.
    timed = args.requests is None and Path(args.workload).suffix == ".json"
    kind = args.arrival or ("recorded" if timed else "poisson")
    if args.cv is not None and kind not in ("poisson", "gamma"):
        raise InvalidRequest(f"--cv has no effect on {kind} arrivals; leave it out")
    if args.burst_size is not None and kind != "burst":
        raise InvalidRequest(f"--burst-size has no effect on {kind} arrivals; leave it out")
    return ArrivalProcess(kind, args.cv or 1.0, args.seed, args.burst_size or 10)


def requests_of(args: argparse.Namespace, arrivals: ArrivalProcess, count: int) -> RequestSet:
    requests = load_requests(args)
    return requests if arrivals.kind == "recorded" else requests.sample(count, args.seed)


def run(args: argparse.Namespace) -> int:
    arrivals = arrivals_of(args)
    if arrivals.kind == "recorded":
        refuse(args, "on recorded arrivals (--arrival poisson draws others)", "rate", "N")
    args.rate = args.rate or math.inf
    args.N = args.N or REQUESTS
    if not args.compat:
        from distserve.planner.commands import default_run

        return default_run.run(args, arrivals)
    refuse_in_compat(
        args,
        "prefill_instances",
        "decode_instances",
        "colocated_strategy",
        "ngpu_per_node",
        "network",
    )
    configuration = configuration_of(args)
    model = noted(find_model(args.model))
    profile = load_hardware(args, model, args.backend)
    slo = Slo(args.prefill_target, args.decode_target)
    search = Search(model, profile, requests_of(args, arrivals, args.N), arrivals, slo)
    if args.output_request_event or args.output_worker:
        result = _with_logs(args, search, configuration)
    else:
        result = search.run(configuration, args.rate)
    write_results(args, model.name, configuration, result, profile.estimated)
    return EXIT_OK


def _with_logs(args: argparse.Namespace, search: Search, configuration: Configuration) -> RunResult:
    from distserve.planner.commands.logs import write_request_events, write_worker_events
    from distserve.planner.compat.steps import StepSimulation

    simulation = StepSimulation(search.trace(args.rate), *search.chains(configuration))
    result = simulation.run()
    if args.output_request_event:
        write_request_events(args.output_request_event, simulation.request_events)
    if args.output_worker:
        write_worker_events(args.output_worker, simulation.worker_events)
    return result


def write_results(
    args: argparse.Namespace,
    model_name: str,
    configuration: Configuration,
    result: RunResult,
    estimated: bool,
) -> None:
    """Files that were asked for, then the summary on stdout."""
    trace = result.trace
    if args.output_requests:
        write_csv(
            args.output_requests,
            REQUEST_COLUMNS,
            zip(
                range(len(trace)),
                trace.prompt_tokens,
                trace.output_tokens,
                trace.arrival_ms,
                result.ttft_ms,
                result.tpot_ms,
                result.finish_ms,
                strict=True,
            ),
        )
    if args.output_request_info:
        write_csv(
            args.output_request_info,
            ["req_id", "prefill_lens", "output_lens"],
            zip(range(len(trace)), trace.prompt_tokens, trace.output_tokens, strict=True),
        )
    if args.output_request_latency:
        write_csv(
            args.output_request_latency,
            LATENCY_COLUMNS,
            latency_rows(result),
        )
    rows = summary_rows(args, model_name, configuration, args.rate, result)
    if args.output_summary:
        write_csv(args.output_summary, SUMMARY_COLUMNS, rows)
    document = summary(args, result) | ({"estimated": True} if estimated else {})
    if args.output == "json":
        print(json.dumps(document, indent=1))
        return
    for key, value in document.items():
        print(f"{key}: {value:.3f}" if isinstance(value, float) else f"{key}: {value}")
    if args.verbose:
        print("\t".join(SUMMARY_COLUMNS))
        for row in rows:
            print("\t".join(str(item) for item in row))


def latency_rows(result: RunResult) -> Iterable[tuple[float | str, ...]]:
    """Without inverses where a request has no time per output token: its one came from prefill."""
    columns = zip(
        result.trace.arrival_ms,
        result.first_token_ms,
        result.finish_ms,
        result.tpot_ms,
        strict=True,
    )
    for arrival, first, finish, tpot in columns:
        inverses = (1 / tpot, 1000 / tpot) if tpot else ("", "")
        yield first - arrival, finish - first, finish - arrival, tpot, *inverses


def summary(args: argparse.Namespace, result: RunResult) -> dict[str, Any]:
    """The figures of one run; a containment is judged strictly, as the reference does."""
    document: dict[str, Any] = {"name": args.name} if args.name else {}
    document["requests"] = len(result.trace)
    for percent in (50, 90, 99):
        document[f"p{percent}_ttft_ms"] = result.ttft_quantile_ms(percent)
        document[f"p{percent}_tpot_ms"] = result.tpot_quantile_ms(percent)
    slo = Slo(args.prefill_target, args.decode_target)
    document["attainment_percent"] = result.attainment_percent(slo)
    if args.prefill_containment:
        found = result.ttft_quantile_ms(args.prefill_containment)
        document["prefill_contained"] = found < args.prefill_target
    if args.decode_containment:
        found = result.tpot_quantile_ms(args.decode_containment)
        document["decode_contained"] = found < args.decode_target
    document["last_finish_ms"] = max(result.finish_ms)
    return document


def summary_rows(
    args: argparse.Namespace,
    model_name: str,
    configuration: Configuration,
    rate: float,
    result: RunResult,
) -> list[tuple[Any, ...]]:
    """Attainment at each scale of the targets, then the target met at each percentile."""
    label = model_name.rsplit("/", 1)[-1].upper()
    degrees = configuration[1:]
    count = len(result.trace)
    ttft, tpot = result.ttft_ms, result.tpot_ms
    rows: list[tuple[Any, ...]] = []

    def add(phase: str, target: Any, attainment: float) -> None:
        rows.append((args.backend, label, phase, rate, target, attainment, *degrees))

    for scale in args.slo_scales:
        slo = Slo(args.prefill_target, args.decode_target).scaled(scale)
        add("prefill", slo.ttft_ms, 100 * sum(t <= slo.ttft_ms for t in ttft) / count)
        add("decode", slo.tpot_ms, 100 * sum(t <= slo.tpot_ms for t in tpot) / count)
        add("both", (slo.ttft_ms, slo.tpot_ms), result.attainment_percent(slo))
    for percent in args.slas:
        add("prefill", result.ttft_quantile_ms(percent), float(percent))
        add("decode", result.tpot_quantile_ms(percent), float(percent))
    return rows


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with writing(path), path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
