"""`distserve bench`: offer load to an OpenAI server, report on what was measured."""

from __future__ import annotations

import argparse
import errno
import importlib

from distserve.cli.usage import UsageError

VERBS = {
    "run": "offer load and keep what was seen",
    "report": "attainment, crossings, figures, a page",
    "prepare": "make a .ds file from published raw files",
    "front": "round-robin before several replicas",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="measure", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary)
        module = importlib.import_module(f"distserve.cli.bench_{name}")
        module.add_arguments(verb)
        verb.set_defaults(measured_by=module.run)


def run(args: argparse.Namespace) -> int:
    from distserve.bench.errors import BenchError
    from distserve.workload import WorkloadError

    try:
        return int(args.measured_by(args))
    except (BenchError, WorkloadError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        if error.errno in _FULL:
            where = f"{error.filename}: " if error.filename else ""  # a write does not say
            raise UsageError(
                f"{where}{error.strerror}; make room and repeat the command"
            ) from error
        if error.filename is None:
            raise
        raise UsageError(
            f"{error.filename}: {error.strerror}; give a folder that can be written"
        ) from error
