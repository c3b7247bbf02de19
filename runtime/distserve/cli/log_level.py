"""How much a process logs: a flag, or the environment, which alone a podTemplate may set."""

import argparse
import os

LEVELS = ("debug", "info", "warning", "error")
VARIABLE = "DISTSERVE_LOG_LEVEL"


def add_log_level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-level",
        type=_level,
        default=os.environ.get(VARIABLE) or "info",
        metavar="|".join(LEVELS),
        help=f"default: {VARIABLE} of the environment, else info",
    )


def _level(text: str) -> str:
    if text not in LEVELS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no level; it and {VARIABLE} take {', '.join(LEVELS)}"
        )
    return text
