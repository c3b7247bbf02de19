"""`distserve simulate sweep`: a grid of simulations, and the ablation figure of the paper."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

from distserve.planner.commands import EXIT_OK
from distserve.planner.commands.arguments import (
    add_backend,
    add_source,
    integer_from,
    integer_list,
    load_hardware,
    noted,
    number_in,
    number_list,
    output_file,
    picture,
    refuse,
)
from distserve.planner.commands.figure import draw_ablation, refuse_undrawable
from distserve.planner.commands.progress import Progress
from distserve.planner.commands.run import (
    SUMMARY_COLUMNS,
    add_load,
    arrivals_of,
    requests_of,
    summary_rows,
    write_csv,
)
from distserve.planner.compat.search import Configuration, Search
from distserve.planner.errors import InvalidRequest, NoProfile, OversizedRequest
from distserve.planner.models import ModelShape, find_model
from distserve.planner.result import Slo

GRID: dict[str, Any] = {
    "backend": "distserve",
    "model": "facebook/opt-13b",
    "per_gpu_rate": [1, 2, 3, 4, 5],
    **{key: [1] for key in ("tp_prefill", "pp_prefill", "tp_decode", "pp_decode")},
    "prefill_target": 200.0,
    "decode_target": 100.0,
    "slo_scales": [1.0, 0.4, 0.6, 0.8, 1.2],
}
"""What is swept unless asked otherwise: the reference's defaults."""

ABLATION_GRID: dict[str, Any] = {
    "backend": None,
    "model": "facebook/opt-66b",
    "per_gpu_rate": [0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75],
    **{key: [1, 2, 4, 8] for key in ("tp_prefill", "pp_prefill", "tp_decode", "pp_decode")},
    "prefill_target": 400.0,
    "decode_target": 100.0,
    "slo_scales": [1.0, 0.4, 0.6, 0.8, 1.2, 1.4, 1.6],
}
"""The same with --figure, which draws both backends: the grid of the paper's Figure 11."""

FIGURE: dict[str, Any] = {"figure_rate": 0.375, "ngpu_per_node": 8, "num_node": 4}
"""How it is drawn unless asked otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_backend(parser)
    parser.add_argument("--model", help="(opt-13b; opt-66b with --figure)")
    parser.add_argument(
        "--per-gpu-rate",
        type=number_list,
        help="requests/s per GPU (1 to 5; the paper's with --figure)",
    )
    parser.add_argument(
        "--base-N", type=integer_list, default=[25], help="requests per GPU (%(default)s)"
    )
    for role in ("prefill", "decode"):
        parser.add_argument(f"--tp-{role}", type=integer_list, help="(1; 1,2,4,8 with --figure)")
        parser.add_argument(f"--pp-{role}", type=integer_list, help="(1; 1,2,4,8 with --figure)")
    parser.add_argument("--total-gpu", type=integer_from(1), default=32)
    parser.add_argument("--output", choices=("table", "json"), default="table")
    parser.add_argument("--output-summary", type=output_file, help="csv of all rows")
    parser.add_argument(
        "--figure",
        type=picture,
        metavar="FILE",
        help="draw attainment over rate and over SLO scale for four systems: both backends, "
        "each over the whole grid and restricted (distserve to segments that fit a node, vllm to "
        "tensor parallelism)",
    )
    drawn = parser.add_argument_group("with --figure")
    drawn.add_argument("--figure-rate", type=number_in(0), help="of the SLO panel, per GPU (0.375)")
    drawn.add_argument("--ngpu-per-node", type=integer_from(1), help="(8)")
    drawn.add_argument("--num-node", type=integer_from(1), help="(4)")
    drawn.add_argument("--output-points", type=output_file, help="json of the points drawn")
    add_load(parser)
    add_source(parser)
    parser.set_defaults(**dict.fromkeys(GRID))  # filled in by run, when --figure is known


def run(args: argparse.Namespace) -> int:
    if not args.compat:
        raise InvalidRequest(
            "sweep reproduces the reference's grids and knows only --compat; "
            "use run or search for the default mode"
        )
    if args.figure:
        refuse(args, "with --figure, which draws both", "backend")
    else:
        refuse(args, "without --figure", *FIGURE, "output_points")
    if args.backend == "vllm":
        refuse(args, "with backend vllm", "tp_decode", "pp_decode")
    if arrivals_of(args).kind == "recorded":
        raise InvalidRequest(
            "recorded arrivals have their own rate, and a sweep is over rates; use run, or "
            "--arrival poisson"
        )
    for name, default in (ABLATION_GRID | FIGURE if args.figure else GRID).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.figure:
        refuse_undrawable(args)
    model = noted(find_model(args.model))
    backends = ("distserve", "vllm") if args.figure else (args.backend,)
    rows = []
    for backend in backends:
        args.backend = backend
        rows += list(_grid(args, model))
    if args.output_summary:
        write_csv(args.output_summary, SUMMARY_COLUMNS, rows)
    if args.output == "json":
        print(json.dumps([dict(zip(SUMMARY_COLUMNS, row, strict=True)) for row in rows]))
    elif not args.output_summary:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(SUMMARY_COLUMNS)
        writer.writerows(rows)
    if args.figure:
        draw_ablation(args, rows)
    return EXIT_OK


def _configurations(args: argparse.Namespace) -> Iterator[Configuration]:
    decode = [(0, 0)] if args.backend == "vllm" else product(args.tp_decode, args.pp_decode)
    for prefill, (tp, pp) in product(product(args.tp_prefill, args.pp_prefill), list(decode)):
        configuration = Configuration(1, *prefill, tp, pp)
        if configuration.accelerators <= args.total_gpu:
            yield configuration


def _grid(args: argparse.Namespace, model: ModelShape) -> Iterator[tuple[Any, ...]]:
    """Summary rows of every point; requests in number grow with the accelerators.

    A configuration without times, memory or equal stages is left out with a line on stderr.
    """
    profile = load_hardware(args, model, args.backend)
    arrivals = arrivals_of(args)
    slo = Slo(args.prefill_target, args.decode_target)
    configurations = list(_configurations(args))
    progress = Progress(f"{args.backend} configurations", len(configurations))
    searches: dict[int, Search] = {}
    for configuration in configurations:
        for base in args.base_N:
            count = base * configuration.accelerators
            if count not in searches:
                requests = requests_of(args, arrivals, count)
                searches[count] = Search(model, profile, requests, arrivals, slo)
            swept = []
            try:
                for per_gpu_rate in args.per_gpu_rate:
                    rate = per_gpu_rate * configuration.accelerators
                    result = searches[count].run(configuration, rate)
                    swept += summary_rows(args, model.name, configuration, rate, result)
            except (InvalidRequest, NoProfile, OversizedRequest) as error:
                print(f"left out: {error}", file=sys.stderr)
                break
            yield from swept
        progress.advance()
    progress.close()
