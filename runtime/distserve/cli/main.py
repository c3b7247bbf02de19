"""Entry point of `distserve`: finds the verb's module and imports nothing else.

Each verb is a module in this package with `add_arguments(parser)` and `run(args) -> exit code`.
Start-up time is part of the interface (`simulate` takes tenths of a second), so a verb's module
imports what is heavy inside `run`.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from distserve.cli.usage import INTERRUPTED
from distserve.cli.usage import UsageError as UsageError

VERBS = {
    "up": "run a deployment's pods as local processes",
    "demo": "serve the tiny model, prefill and decode apart, and show what happened",
    "plan": "say how many instances of which shape meet a deployment's SLO",
    "render": "print the Kubernetes objects of a deployment",
    "why": "say what keeps a deployment in a cluster from serving",
    "crd": "print, write or check the generated CRD",
    "topology": "print the cluster's fabric domains and what is free in each",
    "observability": "write Grafana's dashboards and Prometheus' rules",
    "simulate": "simulate placements and search for the best one",
    "profile": "measure this engine's step times, fit what plans are made of",
    "bench": "measure any OpenAI server under load, report on what was measured",
    "operator": "process: makes the cluster what its deployments say",
    "engine": "process: one instance of the model",
    "migrator": "process: the KV-migration sidecar",
    "instance": "process: an engine and its migrator in one container",
    "gateway": "process: the OpenAI gateway",
    "drain": "preStop of an engine: wait until it is empty",
    "fetch-model": "init container of an engine: download its model into a shared cache",
}
EXTRAS = {
    "up": "local,engine,gateway",
    "demo": "local,engine,gateway",
    "profile": "engine,bench",
    "bench": "bench",
    "observability": "observability",
    "fetch-model": "engine",
}
"""What pyproject calls the packages that a verb needs; of the others, but for processes, it is
`operator`."""


class Parser(argparse.ArgumentParser):
    """Its mistakes are one line, as every other's; argparse would print the whole usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help lists what there is)\n")


class Version(argparse.Action):
    """--version: asked of the installed package only when somebody wants to know."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from importlib.metadata import version

        print(f"distserve {version('distserve')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    try:
        code = _run(argv)
        print(end="", flush=True)
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read it has enough, as `head`. What is left goes nowhere, without a complaint of
        # the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="distserve",
        description="Disaggregated LLM inference: serve, plan, render, place and measure it. "
        "`distserve VERB --help` has the flags of each verb.",
    )
    parser.add_argument(
        "--version", action=Version, nargs=0,
        help="version of this command; builds of one version differ by their images' tags",
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    asked = next((a for a in arguments if not a.startswith("-")), "")
    try:
        for name, summary in VERBS.items():
            verb = verbs.add_parser(name, help=summary, description=summary)
            if name == asked:
                module = importlib.import_module(f"distserve.cli.{name.replace('-', '_')}")
                module.add_arguments(verb)
        parsed = parser.parse_args(arguments)
        return int(module.run(parsed))
    except UsageError as error:
        said, code = str(error), error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "distserve").partition(".")[0]
        # Processes run in images: where one lacks a module, the trace says who imports it.
        if package == "distserve" or VERBS.get(asked, "").startswith("process:"):
            raise
        extra = EXTRAS.get(asked, "operator")
        said = f"{package} is not installed, in a checkout: pip install '.[{extra}]'"
        code = UsageError.exit_code
    print(f"distserve {asked}: {said}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
