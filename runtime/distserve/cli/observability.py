"""`distserve observability`: Grafana's dashboards, Prometheus' rules and scrape configuration."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distserve.observability.pack import Files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", type=Path, required=True, help="made if it is not there")
    parser.add_argument(
        "-f", "--file", type=Path, help="manifest of deployments whose rules are to be written too"
    )
    parser.add_argument(
        "--operator-namespace",
        default="distserve-system",
        help="where the operator runs (default: distserve-system)",
    )
    parser.add_argument(
        "--operator-name",
        default="distserve-operator",
        help="of its Deployment (default: distserve-operator)",
    )
    parser.add_argument(
        "--runbook-url",
        default="docs/runbooks",
        help="where you publish the folder docs/runbooks: the alerts link to its pages",
    )


def run(args: argparse.Namespace) -> int:
    from distserve.cli.usage import UsageError

    files = _files(args)
    try:
        for path, text in files.items():
            target = args.output_dir / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output-dir {args.output_dir}: {error.strerror}") from None
    for path in files:
        print(args.output_dir / path)
    if args.file is None:
        print("rules of deployments are written with -f", file=sys.stderr)
    return 0


def _files(args: argparse.Namespace) -> "Files":
    from distserve.api.loading import ManifestError, load_deployments
    from distserve.cli.usage import UsageError
    from distserve.observability.pack import pack
    from distserve.resources.monitoring import rules_document

    try:
        deployments = load_deployments(args.file) if args.file is not None else []
        rules = [
            (f"{d.namespace}.{d.name}", rules_document(d, args.runbook_url)) for d in deployments
        ]
        return pack(rules, args.operator_namespace, args.operator_name, args.runbook_url)
    except ManifestError as error:
        raise UsageError(str(error)) from None
