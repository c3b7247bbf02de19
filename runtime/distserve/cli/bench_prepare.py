"""`distserve bench prepare`: make a .ds file from published raw files."""

from __future__ import annotations

import argparse
from pathlib import Path

from distserve.cli.usage import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distserve.bench.datasets.builders import BUILDERS
    from distserve.bench.datasets.prepare import MIXES

    add = parser.add_argument
    add("name", choices=[*BUILDERS, *MIXES], metavar="NAME", help=", ".join([*BUILDERS, *MIXES]))
    add("sources", type=Path, nargs="+", metavar="RAW", help="raw file or folder; .ds for mixes")
    add("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json of the measured model")
    add("--ds", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--seed", type=int, default=0)
    add("--count", type=int, metavar="N", help="requests (mixed: of each set)")
    add("--alpha", type=float, default=1.0, help="of zipf: 1.0, 1.2 and 1.4 in LoongServe")
    add(
        "--class-slo-tpot", metavar="TIMES",
        help="of adaserve: each set's own objective, as 36ms,50ms,150ms",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from statistics import fmean

    from distserve.bench.datasets.prepare import Order, prepare, write_ds

    if args.count is not None and args.count < 1:
        raise UsageError("--count must be at least 1")
    if args.class_slo_tpot is not None and args.name != "adaserve":
        raise UsageError("--class-slo-tpot belongs to adaserve; leave it out")
    made = prepare(
        Order(
            args.name, args.sources, args.tokenizer, args.seed, args.count, args.alpha,
            _class_objectives(args.class_slo_tpot),
        )
    )  # fmt: skip
    write_ds(args.ds, args.name, made)
    print(
        f"{args.ds}: {len(made)} requests, mean {fmean(r.prompt_tokens for r in made):.1f} in, "
        f"{fmean(r.output_tokens for r in made):.1f} out"
    )
    return 0


def _class_objectives(text: str | None) -> list[float] | None:
    from distserve.api.durations import parse_duration

    try:
        return (
            None if text is None else [round(parse_duration(t) * 1000, 6) for t in text.split(",")]
        )
    except ValueError as error:
        raise UsageError(f"--class-slo-tpot {text!r}: {error}") from error
