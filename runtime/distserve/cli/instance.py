"""`distserve instance -- ENGINE'S FLAGS -- MIGRATOR'S FLAGS`: both in one container."""

import argparse
import os
import sys

from distserve.cli.usage import UsageError

SEPARATOR = "--"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "distserve instance -- ENGINE'S FLAGS -- MIGRATOR'S FLAGS"
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="see `distserve engine --help`")


def run(args: argparse.Namespace) -> int:
    from distserve.engine.instance import Instance
    from distserve.wire.logs import setup_logging
    from distserve.wire.parent import end_with_parent

    engine, migrator = split(args.flags)
    end_with_parent()
    setup_logging("instance")
    distserve = [sys.executable, "-m", "distserve.cli.main"]
    return Instance(
        [*distserve, "engine", *engine], [*distserve, "migrator", *migrator], os.environ
    ).run()


def split(flags: list[str]) -> tuple[list[str], list[str]]:
    words = flags[1:] if flags[:1] == [SEPARATOR] else flags
    if words.count(SEPARATOR) != 1:
        raise UsageError("write `distserve instance -- ENGINE'S FLAGS -- MIGRATOR'S FLAGS`")
    middle = words.index(SEPARATOR)
    return words[:middle], words[middle + 1 :]
