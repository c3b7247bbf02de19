"""`distserve bench report`: attainment, crossings, figures and a page of what was measured."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distserve.cli.bench_words import seconds_of
from distserve.cli.stderr import reader_may_leave
from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.bench.analysis import Run
    from distserve.bench.slos import Multiple, NormalisedSlo, Objective


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="with .exp files, subfolders included")
    add("--slo", metavar="NAME", help="a paper's objectives, as sharegpt-opt-13b (docs/bench.md)")
    for part, example in (("ttft", "250ms"), ("tpot", "100ms")):
        add(
            f"--slo-{part}", metavar="TIME",
            help=f"objective, as {example}, as 5x of what was measured almost idle, or none; "
            "default: that of the runs",
        )  # fmt: skip
    add(
        "--normalised-slo", metavar="NAME|LIMITS",
        help="limits per token: LoongServe's by name, as sharegpt, or of all tokens, input "
        "and output, as 92ms,20ms,320ms, or as 25x of what was measured almost idle",
    )  # fmt: skip
    add("--slo-scales", metavar="LIST", help="factors of both objectives, as 1.6,1.4,1.2,1,0.8")
    add(
        "--scale-rate", type=float, metavar="RATE",
        help="requests per second per GPU at which they are scaled, the nearest measured; default: "
        "the paper's of --slo, else the lowest rate that all systems have",
    )  # fmt: skip
    add(
        "--gpus", action="append", default=[], metavar="SYSTEM=N",
        help="accelerators of a system; default: what its runs say, else 1",
    )  # fmt: skip
    add("--output-dir", type=Path, help="default: DIR/report")
    add("--no-figures", action="store_true", help="tables and page only, without matplotlib")
    add("--output", choices=["table", "json"], default="table", help="what is printed")


@reader_may_leave()
def run(args: argparse.Namespace) -> int:
    from distserve.bench.objectives import Asked
    from distserve.bench.report import question_of, write_report
    from distserve.bench.summary import crossings_table
    from distserve.bench.tables import json_text

    if args.scale_rate is not None and not args.scale_rate > 0:
        raise UsageError(f"--scale-rate {args.scale_rate:g}: give a number above 0")
    asked = Asked(
        args.slo, _objective(args, "slo_ttft"), _objective(args, "slo_tpot"), _scales(args),
        args.scale_rate,
    )  # fmt: skip
    question = question_of(args.folder, asked, _gpus(args.gpus))
    output = args.output_dir or args.folder / "report"
    text = args.normalised_slo
    limits = None if text is None else _per_token(text, question.runs)
    tables = write_report(
        question, output, not args.no_figures, lambda line: print(line, file=sys.stderr), limits
    )
    if args.output == "json":
        print(json_text(**tables), end="")
    else:
        print(crossings_table(tables["crossings"]))
        print(f"figures and tables: {output / 'report.html'}")
    return 0


def _objective(args: argparse.Namespace, name: str) -> Objective | None:
    from distserve.bench.slos import NONE

    text = getattr(args, name)
    if text is None:
        return None
    return NONE if text == "none" else _multiple(text) or seconds_of(args, name)


def _multiple(text: str) -> Multiple | None:
    from distserve.bench.slos import Multiple

    times = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)x", text)
    return Multiple(float(times[1])) if times else None


def _per_token(text: str, runs: Sequence[Run]) -> NormalisedSlo:
    """Of all tokens, of input and of output; one alone is that of each."""
    from distserve.api.durations import parse_duration
    from distserve.bench.objectives import limits_per_token
    from distserve.bench.slos import LOONGSERVE_SLOS

    if text in LOONGSERVE_SLOS:
        return LOONGSERVE_SLOS[text]
    try:
        limits = [_multiple(limit) or parse_duration(limit) for limit in text.split(",")]
    except ValueError:
        limits = []
    if len(limits) not in (1, 3):
        raise UsageError(
            f"--normalised-slo {text!r}: choose one of {', '.join(LOONGSERVE_SLOS)}, or give the "
            "limits of all tokens, input and output, as 92ms,20ms,320ms or as 25x"
        )
    return limits_per_token(runs, limits * (3 // len(limits)))


def _scales(args: argparse.Namespace) -> tuple[float, ...] | None:
    if args.slo_scales is None:
        return None
    try:
        scales = tuple(float(scale) for scale in args.slo_scales.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise UsageError(f"--slo-scales {args.slo_scales!r}: give numbers above 0, as 1.2,1,0.8")
    return scales


def _gpus(words: list[str]) -> dict[str, int]:
    found = {}
    for word in words:
        system, separator, count = word.rpartition("=")
        if not (separator and system and count.isdecimal() and int(count) > 0):
            raise UsageError(f"--gpus {word!r}: give SYSTEM=N, as vllm=1")
        found[system] = int(count)
    return found
