"""Arguments that several verbs share, and what they are turned into."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distserve.planner.errors import InvalidRequest
from distserve.planner.links import DEFAULT_NETWORK
from distserve.planner.models import ModelShape
from distserve.planner.profiles import DEFAULT_PROFILE, HardwareProfile, load_profile
from distserve.workload import RequestSet, read_requests

_PICTURES = (".png", ".svg", ".pdf")


def number_in(low: float, high: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a number above `low` and at most `high`."""

    def parse(text: str) -> float:
        value = float(text)
        if not low < value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not above {low:g} and at most {high:g}")
        return value

    parse.__name__ = "number"
    return parse


def integer_from(low: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least `low`."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is less than {low}")
        return value

    parse.__name__ = "integer"
    return parse


def number_list(text: str) -> list[float]:
    """An argparse type: `[1, 2]` or `1,2`."""
    try:
        value = ast.literal_eval(text.strip() or "[]")
    except (ValueError, SyntaxError):
        value = None
    if isinstance(value, (int, float)):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(item, (int, float)) for item in value
    ):
        raise argparse.ArgumentTypeError(f"{text} is not a list of numbers such as [1, 2]")
    return list(value)


def integer_list(text: str) -> list[int]:
    """An argparse type: a list of whole numbers of at least 1."""
    values = number_list(text)
    if any(not math.isfinite(value) or value != int(value) or value < 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text} is not a list of whole numbers from 1")
    return [int(value) for value in values]


def percentile_list(text: str) -> list[float]:
    """An argparse type: a list of numbers from 0 to 100."""
    values = number_list(text)
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text} is not a list of percentiles from 0 to 100")
    return values


def add_source(parser: argparse.ArgumentParser) -> None:
    """Where requests and step times come from."""
    parser.add_argument(
        "--workload", default="sharegpt", help="name of a .ds file in $DATASET (%(default)s)"
    )
    parser.add_argument(
        "--requests", type=Path, help="request set: csv (plain or gzipped), .ds, .json or .jsonl"
    )
    parser.add_argument(
        "--seed", type=integer_from(0), default=0, help="draws requests and gaps (%(default)s)"
    )
    parser.add_argument(
        "--compat",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the reference's semantics, or joint attainment, memory and migration (on)",
    )
    add_hardware(parser)


def add_hardware(
    parser: argparse.ArgumentParser,
    default: str | None = DEFAULT_PROFILE,
    words: str = DEFAULT_PROFILE,
) -> None:
    """`words`: what holds where none is named."""
    parser.add_argument(
        "--hardware-profile",
        default=default,
        metavar="NAME|FILE",
        help=f"measured step times ({words})",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="compute step times from the accelerator's data sheet for a model of which none were "
        "measured",
    )


def output_file(text: str) -> Path:
    """An argparse type: a file to write, found out before what may take minutes."""
    path = Path(text)
    # os.path, since a Path raises for what may not be looked at.
    if os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"{text} is a folder; give a file in it")
    if os.path.exists(path):  # also a pipe or a terminal, in whose folder nobody may write
        if not os.access(path, os.W_OK):
            raise argparse.ArgumentTypeError(f"{text}: cannot write into this file")
    elif not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: cannot write into a folder {path.parent}")
    return path


def picture(text: str) -> Path:
    """An argparse type: a file to draw into, and that drawing is installed."""
    path = output_file(text)
    if path.suffix not in _PICTURES:
        raise argparse.ArgumentTypeError(f"{text} does not end in {', '.join(_PICTURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("needs matplotlib, in a checkout: pip install '.[bench]'")
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises InvalidRequest where `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from error


def add_network(
    parser: argparse.ArgumentParser, words: str = f"{DEFAULT_NETWORK}; none in compat"
) -> None:
    """`words`: what holds where none is named."""
    parser.add_argument("--network", metavar="NAME|FILE", help=f"measured transfer times ({words})")


def refuse(args: argparse.Namespace, where: str, *names: str) -> None:
    """Raise InvalidRequest when a flag was given that has no effect `where`; 0 says none."""
    for name in names:
        if getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise InvalidRequest(f"{flag} has no effect {where}; leave it out")


def refuse_in_compat(args: argparse.Namespace, *names: str) -> None:
    """Raise InvalidRequest when one of the default mode's flags was given to the reference's."""
    for name in names:
        if getattr(args, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise InvalidRequest(f"{flag} has no effect in compat; add --no-compat or leave it out")


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("distserve", "vllm"),
        default="distserve",
        help="prefill and decode apart, or both on the same accelerators (distserve)",
    )


def load_requests(args: argparse.Namespace) -> RequestSet:
    """`--requests`, else the workload as a file, else `$DATASET/{workload}.ds`."""
    if args.requests is not None:
        return read_requests(args.requests)
    if Path(args.workload).is_file():
        return read_requests(args.workload)
    folder = os.environ.get("DATASET")
    if not folder:
        raise InvalidRequest(
            "no requests: give --requests FILE (csv with prompt_len,output_len) or set DATASET to "
            f"the folder that holds {args.workload}.ds"
        )
    return read_requests(Path(folder) / f"{args.workload}.ds")


def noted(model: ModelShape) -> ModelShape:
    """The same; what its shape takes for granted is told on stderr."""
    if model.assumed:
        print(f"note: {model.assumed}", file=sys.stderr)
    return model


def load_hardware(args: argparse.Namespace, model: ModelShape, engine: str) -> HardwareProfile:
    """The named profile; with `--estimate`, estimated where it does not know the model."""
    if args.estimate:
        from distserve.planner.roofline import with_estimates

        return with_estimates(args.hardware_profile, engine, model)
    return load_profile(args.hardware_profile, engine)
