"""`distserve bench prepare`: make a .ds file from published raw files."""

from __future__ import annotations

import argparse
from pathlib import Path

from distserve.cli.stderr import reader_may_leave
from distserve.cli.usage import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distserve.bench.datasets.builders import BUILDERS
    from distserve.bench.datasets.mixes import MIXED_OF_EACH
    from distserve.bench.datasets.prepare import MIXES, ZIPF_COUNT

    add = parser.add_argument
    names = ", ".join([*BUILDERS, *MIXES])
    add("name", choices=[*BUILDERS, *MIXES], metavar="NAME", help=names)
    add("sources", type=Path, nargs="+", metavar="RAW", help="raw file or folder; .ds for mixes")
    add("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json of the measured model")
    add("--ds", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--seed", type=int, default=0, help="of what is drawn; default 0")
    add(
        "--count", type=int, metavar="N",
        help=f"requests; default all, of zipf and adaserve {ZIPF_COUNT}, of mixed {MIXED_OF_EACH} "
        "of each set",
    )  # fmt: skip
    add("--alpha", type=float, help="of zipf: 1.0 (default), 1.2 and 1.4 in LoongServe")
    add("--beta", type=float, help="of zipf: weights are 1/(length + beta)^alpha; default 0")
    add(
        "--class-slo-tpot", metavar="TIMES",
        help="of adaserve: each set's own objective, as 36ms,50ms,150ms; default none",
    )  # fmt: skip


@reader_may_leave()
def run(args: argparse.Namespace) -> int:
    from statistics import fmean

    from distserve.bench.datasets.prepare import MIXES, Order, prepare, write_ds

    if args.count is not None and args.count < 1:
        raise UsageError("--count must be at least 1")
    for name, owner in (("alpha", "zipf"), ("beta", "zipf"), ("class_slo_tpot", "adaserve")):
        if getattr(args, name) is not None and args.name != owner:
            raise UsageError(f"--{name.replace('_', '-')} belongs to {owner}; leave it out")
    if args.name in MIXES and args.tokenizer is not None:
        raise UsageError(f"{args.name} mixes what is counted already; leave out --tokenizer")
    weights = {n: value for n in ("alpha", "beta") if (value := getattr(args, n)) is not None}
    made = prepare(
        Order(
            args.name, args.sources, args.tokenizer, args.seed, args.count,
            class_slo_tpots_ms=_class_objectives(args.class_slo_tpot), **weights,
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
