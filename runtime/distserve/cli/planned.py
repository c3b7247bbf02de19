"""A deployment with its numbers: in mode Auto `render`, `up` and `demo` plan before all else."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distserve.cli.usage import Infeasible, UsageError

if TYPE_CHECKING:
    from distserve.api.deployment import DistServeDeployment, Spec
    from distserve.api.loading import Manifest
    from distserve.api.planning import ConfigMapKey

DEADLINE_SECONDS = 300.0


@dataclass(frozen=True)
class Sources:
    """Where the planner's numbers come from, besides the deployment itself."""

    manifest: "Manifest | None" = None
    """May hold the ConfigMaps which the deployment names."""
    hardware_profile: str | None = None
    trace: Path | None = None


NOTHING_ELSE = Sources()


def add_planning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hardware-profile",
        metavar="NAME|FILE",
        help="plan with these step times, mode Auto only (default: planning.hardwareProfile)",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="plan for these requests, mode Auto only (default: the spec's workload)",
    )


def sources_of(args: argparse.Namespace, manifest: "Manifest") -> Sources:
    return Sources(manifest, args.hardware_profile, args.trace)


def planned(
    deployment: "DistServeDeployment",
    sources: Sources = NOTHING_ELSE,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> "DistServeDeployment":
    """The deployment as it is in mode Manual, else with its plan's numbers.

    Says the plan in one line on stderr. Raises Infeasible, and UsageError where no plan can be
    made.
    """
    if not deployment.spec.planning.automatic:
        _refuse_without_effect(deployment.name, sources)
        return deployment
    from distserve.planner.commands.arguments import noted
    from distserve.planner.errors import PlannerError
    from distserve.planner.worker import plan_within
    from distserve.resources.errors import NoPlan
    from distserve.resources.planned import plan_line, with_plan
    from distserve.resources.planning import model_of, plan_request, profile_of
    from distserve.workload import WorkloadError, read_requests

    spec = deployment.spec
    texts = texts_of(spec, sources.manifest)
    try:
        model = noted(model_of(spec, files_at_hand=True))
        profile = profile_of(spec, model, sources.hardware_profile, texts=texts)
        requests = read_requests(sources.trace) if sources.trace else None
        request = plan_request(spec, profile=profile, requests=requests, texts=texts, model=model)
        plan = plan_within(request, deadline_seconds)
        result = with_plan(deployment, plan)
    except (PlannerError, WorkloadError) as error:
        raise UsageError(f"{deployment.name}: {error}") from None
    except NoPlan as error:
        raise Infeasible(f"{deployment.name}: {error}") from None
    print(f"plan of {deployment.name}: {plan_line(deployment, plan)}", file=sys.stderr)
    return result


def texts_of(spec: "Spec", manifest: "Manifest | None") -> "dict[ConfigMapKey, str]":
    """What the manifest's own ConfigMaps hold of the texts that the deployment names."""
    from distserve.resources.planning import references

    wanted = references(spec)
    if not wanted or manifest is None:
        return {}
    found = {
        (name, key): text
        for document in manifest.documents
        if isinstance(document, dict) and document.get("kind") == "ConfigMap"
        for name, data in _named(document)
        for key, text in data.items()
    }
    named = {key: found.get((key.config_map_name, key.key)) for key in wanted}
    return {key: text for key, text in named.items() if text is not None}


def _named(config_map: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Its name and data. What lacks one of them is for the API server to complete or refuse."""
    metadata, data = config_map.get("metadata"), config_map.get("data")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if isinstance(name, str) and isinstance(data, dict):
        yield name, data


def _refuse_without_effect(name: str, sources: Sources) -> None:
    for flag, value in (
        ("--hardware-profile", sources.hardware_profile),
        ("--trace", sources.trace),
    ):
        if value is not None:
            raise UsageError(
                f"{name}: {flag} has no effect in planning.mode Manual; "
                "leave it out, or set mode: Auto"
            )
