"""A deployment's document and the cluster's nodes -> a planning request, and the plan back.

Documents are plain dicts as YAML gives them: this room knows the fields that a plan depends on and
leaves the rest to the API's own checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from distserve.planner.errors import InvalidRequest
from distserve.planner.links import DEFAULT_NETWORK
from distserve.planner.machine import Machine
from distserve.planner.models import ModelShape, find_model
from distserve.planner.plan import Plan, PlanRequest
from distserve.planner.profiles import HardwareProfile
from distserve.planner.result import Slo
from distserve.workload import RequestSet
from distserve.workload.lengths import from_summary

SUMMARY_REQUESTS = 5000
DEFAULT_RESOURCE = "nvidia.com/gpu"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_MILLISECONDS = {"ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6}


def duration_ms(text: object, field: str) -> float:
    """`250ms`, `1m30s` -> milliseconds."""
    parts = _DURATION.findall(str(text))
    if not parts or "".join(number + unit for number, unit in parts) != str(text):
        raise InvalidRequest(f"{field}: {text!r} is no duration; write 250ms or 1.5s")
    return sum(float(number) * _MILLISECONDS[unit] for number, unit in parts)


def model_of(spec: Mapping[str, Any]) -> ModelShape:
    """The model's shape: a known id, or the config.json behind a hostPath."""
    model = _section(spec, "model", required=True)
    source = _section(model, "source")
    name = str(model.get("id", ""))
    try:
        shape = find_model(name)
    except InvalidRequest:
        path = source.get("hostPath") or source.get("imagePath")
        if not path:
            raise
        shape = replace(find_model(str(path)), name=name)
    if str(model.get("dtype", "")) == "float32":
        shape = replace(shape, dtype_bytes=4)
    return shape


def slo_of(spec: Mapping[str, Any]) -> Slo:
    slo = _section(spec, "slo", required=True)
    percent = float(slo.get("attainmentPercent", 90))
    return Slo(
        duration_ms(slo.get("ttft"), "spec.slo.ttft"),
        duration_ms(slo.get("tpot"), "spec.slo.tpot"),
        percent,
        percent,
    )


def requests_of(spec: Mapping[str, Any], model: ModelShape) -> RequestSet:
    """The workload's lengths as requests."""
    lengths = _section(_section(spec, "workload", required=True), "lengths")
    if not lengths:
        raise InvalidRequest("spec.workload.lengths is missing; add it, or give --requests FILE")
    summaries = []
    for key in ("promptTokens", "outputTokens"):
        summary = _section(lengths, key)
        try:
            summaries.append((float(summary["mean"]), float(summary["p90"])))
        except (KeyError, ValueError) as error:
            raise InvalidRequest(
                f"spec.workload.lengths.{key} needs the numbers mean and p90"
            ) from error
    limit = int(_section(spec, "model").get("maxModelLen") or model.max_positions)
    return from_summary(summaries[0], summaries[1], limit, SUMMARY_REQUESTS)


def nodes_of(listing: Mapping[str, Any], resource: str = DEFAULT_RESOURCE) -> list[int]:
    """Allocatable accelerators of each schedulable node in `kubectl get nodes -o yaml`."""
    items = listing.get("items", [listing])
    nodes = []
    for node in items if isinstance(items, Iterable) else []:
        if node.get("spec", {}).get("unschedulable"):
            continue
        count = int(node.get("status", {}).get("allocatable", {}).get(resource, 0))
        if count:
            nodes.append(count)
    if not nodes:
        raise InvalidRequest(f"no schedulable node offers {resource}; check --nodes")
    return nodes


def machine_of(
    spec: Mapping[str, Any],
    nodes: list[int] | None,
    per_node: int = 8,
    high_affinity: bool = False,
    network: str = DEFAULT_NETWORK,
) -> Machine:
    """The given nodes, else `maxAccelerators` in nodes of `per_node`; a unit lies in one node."""
    limit = _section(spec, "planning").get("maxAccelerators")
    if nodes is None:
        if limit is None:
            raise InvalidRequest("give spec.planning.maxAccelerators or --nodes")
        full, rest = divmod(int(limit), per_node)
        nodes = [per_node] * full + ([rest] if rest else [])
    return Machine(
        nodes,
        int(limit) if limit is not None else None,
        high_affinity,
        network,
        span_nodes=False,
    )


def plan_request(
    document: Mapping[str, Any],
    profile: HardwareProfile,
    machine: Machine,
    requests: RequestSet | None = None,
    fixed_tp: Mapping[str, int] | None = None,
) -> PlanRequest:
    """The whole question; raises InvalidRequest naming the field and the cure."""
    spec = _section(document, "spec", required=True)
    model = model_of(spec)
    rate = _section(spec, "workload").get("requestsPerSecond")
    strategy = _section(spec, "strategy")
    first: Mapping[str, Any] = next(
        (spec[r] for r in ("prefill", "hybrid") if isinstance(spec.get(r), dict)), {}
    )
    scheduling = _section(first, "scheduling")
    utilisation = first.get("acceleratorMemoryUtilization")
    if utilisation is not None:
        profile = replace(
            profile,
            kv_budget_bytes=profile.memory_bytes * float(utilisation),
            max_tokens={},
        )
    try:
        asked = float(rate) if rate is not None else None
    except ValueError as error:
        raise InvalidRequest(f"spec.workload.requestsPerSecond: {rate!r} is no number") from error
    return PlanRequest(
        model=model,
        profile=profile,
        slo=slo_of(spec),
        requests=requests or requests_of(spec, model),
        machine=machine,
        rate=asked,
        strategy=str(strategy.get("name", "Disaggregated")),
        options=_section(strategy, "options"),
        fixed_tp=fixed_tp or {},
        max_batched_tokens=int(scheduling.get("maxNumBatchedTokens", 8192)),
        max_requests=int(scheduling.get("maxNumSeqs", 256)),
    )


def with_plan(document: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The deployment with the plan's numbers in the fields that hold them under mode Manual.

    What the user set besides (podTemplate, scheduling) stays. Raises InvalidRequest for a plan
    that is only a nearest miss.
    """
    if not plan.feasible:
        raise InvalidRequest(f"there is no plan to render: {plan.reason}")
    spec = dict(_section(document, "spec", required=True))
    for role, part in plan.roles.items():
        spec[role] = {
            **_section(spec, role),
            "instancesPerUnit": part.instances,
            "parallelism": {"tensor": part.tensor, "pipeline": part.pipeline},
        }
    spec["units"] = plan.units
    return {**document, "spec": spec}


def plan_document(plan: Plan) -> dict[str, Any]:
    """The plan as `status.plan` holds it, with what the command shows besides."""
    document: dict[str, Any] = {
        "mode": "Auto",
        "feasible": plan.feasible,
        "reason": plan.reason,
        "inputsHash": plan.inputs_hash,
        "unit": {role: asdict(part) for role, part in plan.roles.items()},
        "units": plan.units,
        "accelerators": plan.accelerators,
        "goodput": f"{plan.goodput:.3g}",
        "totalGoodput": f"{plan.total_goodput:.4g}",
        "binds": plan.binds,
        "estimated": plan.estimated,
    }
    if plan.prediction:
        found = plan.prediction
        document["predicted"] = {
            "requestsPerSecond": f"{found.rate:.4g}",
            "attainmentPercent": round(found.attainment_percent, 2),
            "ttftMilliseconds": {f"p{p}": round(ms, 1) for p, ms in found.ttft_ms.items()},
            "tpotMilliseconds": {f"p{p}": round(ms, 1) for p, ms in found.tpot_ms.items()},
            "utilisation": {role: round(share, 3) for role, share in found.utilisation.items()},
        }
    if plan.runner_up:
        document["runnerUp"] = {
            "unit": {role: asdict(part) for role, part in plan.runner_up.roles.items()},
            "goodput": f"{plan.runner_up.goodput:.3g}",
        }
    return document


def _section(parent: Mapping[str, Any], key: str, required: bool = False) -> Mapping[str, Any]:
    value = parent.get(key)
    if value is None and not required:
        return {}
    if not isinstance(value, Mapping):
        what = "missing" if value is None else "no mapping"
        raise InvalidRequest(f"{key} is {what}; a plan needs it")
    return value
