"""What is valid in a deployment but not in this build of the engine."""

from distserve.api.conditions import AcceptedReason
from distserve.api.deployment import AcceleratorType, DistServeDeployment, Spec

MOST_RANKS = {AcceleratorType.CPU: 1}
"""Of one instance, on the accelerators that this engine runs on."""


def most_ranks(spec: Spec) -> int | None:
    """What a plan may give one instance, so that it is not refused afterwards.

    None where this engine runs nothing at all yet: there a plan is for one that will.
    """
    return MOST_RANKS.get(spec.accelerator.type)


def unsupported_by_engine(deployment: DistServeDeployment) -> str | None:
    """One line that names field and cure, or None when the engine can run it."""
    spec = deployment.spec
    for role, section in spec.roles.items():
        if section.parallelism.ranks > 1:
            return _line(f"spec.{role}.parallelism", "more than one rank", "tensor: 1, pipeline: 1")
    if spec.accelerator.type != "CPU":
        return _line("spec.accelerator.type", f"{spec.accelerator.type.value}", "type: CPU")
    return None


def _line(field: str, asked: str, cure: str) -> str:
    reason = AcceptedReason.NOT_SUPPORTED_BY_ENGINE
    return f"{reason}: {field}: this engine cannot run {asked} yet; set {cure}"
