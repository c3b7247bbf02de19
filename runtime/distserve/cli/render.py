"""`distserve render`: a deployment's Kubernetes objects as they are applied, without its key."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from distserve.cli.planned import add_planning, planned, sources_of
from distserve.cli.usage import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, help="manifest")
    parser.add_argument("--name", help="which deployment, where the manifest has several")
    add_planning(parser)
    parser.add_argument("--output", choices=("yaml", "json"), default="yaml")


def run(args: argparse.Namespace) -> int:
    from distserve.api.loading import ManifestError, read_manifest
    from distserve.resources.errors import RenderError
    from distserve.resources.render import render
    from distserve.resources.settings import RenderSettings, released_images

    settings = RenderSettings(released_images())
    try:
        manifest = read_manifest(args.file)
        sources = sources_of(args, manifest)
        chosen = [d for d in manifest.deployments() if args.name in (None, d.name)]
        objects = [o for d in chosen for o in render(planned(d, sources), settings)]
    except ManifestError as error:
        raise UsageError(str(error)) from None
    except RenderError as error:
        raise UsageError(f"{args.file}: {error}") from None
    if not chosen:
        raise UsageError(f"{args.file}: no deployment {args.name!r}")
    print_objects(objects, args.output)
    return 0


def print_objects(objects: list[dict[str, Any]], output: str) -> None:
    if output == "json":
        found = {"apiVersion": "v1", "kind": "List", "items": objects}
        print(json.dumps(found, indent=2))
        return
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    yaml.dump_all(objects, sys.stdout, Dumper, sort_keys=False, explicit_start=True)
