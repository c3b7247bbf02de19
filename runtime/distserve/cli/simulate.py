"""`distserve simulate`: search placements, run one simulation, sweep a grid of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from distserve.planner.commands import EXIT_WRONG_INPUT
from distserve.planner.commands import run as run_verb
from distserve.planner.commands import search as search_verb
from distserve.planner.commands import sweep as sweep_verb
from distserve.planner.errors import PlannerError
from distserve.workload import WorkloadError

_VERBS = {
    "search": (search_verb, "the best parallelism for a workload"),
    "run": (run_verb, "one simulation"),
    "sweep": (sweep_verb, "a grid of simulations"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="simulation", metavar="VERB", required=True)
    for name, (module, summary) in _VERBS.items():
        module.add_arguments(verbs.add_parser(name, help=summary, description=summary))


def run(args: argparse.Namespace) -> int:
    try:
        code: int = _VERBS[args.simulation][0].run(args)
        return code
    except (PlannerError, WorkloadError) as error:
        wrong = str(error)
    except OSError as error:
        if error.filename is None:  # of a pipe, not of a file that was asked for
            raise
        wrong = f"{error.filename}: {error.strerror}; give another file"
    print(f"distserve simulate {args.simulation}: {wrong}", file=sys.stderr)
    return EXIT_WRONG_INPUT


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="distserve simulate", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
