"""A deployment and the cluster's nodes -> the question that the planner answers.

Used alike by `distserve plan`, `render`, `up` and the operator, so that all of them ask the same.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from distserve.api.accelerator import DEFAULT_KV_CACHE, AcceleratorType
from distserve.api.deployment import DEFAULT_MEMORY_UTILIZATION, Slo, Spec
from distserve.api.durations import parse_duration
from distserve.api.model import Dtype
from distserve.api.planning import ConfigMapKey, LengthSummary
from distserve.api.quantities import parse_bytes, parse_quantity
from distserve.models.builtin import builtin_path
from distserve.placement.inventory import Offer
from distserve.placement.matching import misfit, takes_all
from distserve.placement.requests import InstanceRequest
from distserve.planner import result
from distserve.planner.errors import InvalidRequest, NoProfile
from distserve.planner.links import DEFAULT_NETWORK
from distserve.planner.machine import Machine
from distserve.planner.models import KNOWN_MODELS, ModelShape, known_model, model_at
from distserve.planner.profiles import (
    DEFAULT_PROFILE,
    HardwareProfile,
    load_profile,
    names_file,
    parse_profile,
    shipped_profile,
)
from distserve.planner.question import PlanRequest
from distserve.planner.roofline import ACCELERATORS, with_estimates
from distserve.resources.support import most_ranks
from distserve.workload import RequestSet, WorkloadError, parse_requests
from distserve.workload.lengths import from_summary

SUMMARY_REQUESTS = 5000
NODE_ACCELERATORS = 8
"""Size of the nodes of a machine of which only the number of accelerators is known."""
_DTYPE_BYTES = {Dtype.FLOAT16: 2, Dtype.BFLOAT16: 2, Dtype.FLOAT32: 4, Dtype.FLOAT64: 8}
_BESIDE_OWN_TIMES = (
    "has no effect beside step times of your own, which have no data sheet: measure that, or for "
    f"GPUs name one that has one as planning.hardwareProfile ({', '.join(ACCELERATORS)})"
)


Texts = Mapping[ConfigMapKey, str]
"""What the ConfigMaps hold that a deployment names, read by whoever can."""


def references(spec: Spec) -> list[ConfigMapKey]:
    """The texts without which the question cannot be put."""
    trace = spec.workload.trace if spec.workload else None
    return [key for key in (trace, spec.planning.hardware_profile_from) if key]


def plan_request(
    spec: Spec,
    machine: Machine | None = None,
    profile: HardwareProfile | None = None,
    requests: RequestSet | None = None,
    fixed_tp: Mapping[str, int] | None = None,
    texts: Texts | None = None,
    any_ranks: bool = False,
    model: ModelShape | None = None,
) -> PlanRequest:
    """The whole question; what is given replaces what the spec says.

    `any_ranks` allows instances of more ranks than this engine runs. Opens no file that the spec
    names. Raises InvalidRequest, InvalidProfile, NoProfile or WorkloadError, naming the field and
    the cure.
    """
    model = model or model_of(spec)
    profile = profile or profile_of(spec, model, texts=texts)
    rate = spec.workload and spec.workload.requests_per_second
    scheduling = [section.scheduling for section in spec.roles.values()]
    return PlanRequest(
        model=model,
        profile=_within_memory(spec, profile, model),
        slo=_slo(spec.slo),
        requests=_requests(spec, model, requests, texts or {}),
        machine=machine or machine_of(spec),
        rate=float(parse_quantity(rate)) if rate else None,
        strategy=spec.strategy.name.value,
        options=spec.strategy.options,
        fixed_tp=fixed_tp or {},
        max_batched_tokens=scheduling[0].max_num_batched_tokens,
        max_requests=min(bounds.max_num_seqs for bounds in scheduling),
        max_ranks=None if any_ranks else most_ranks(spec),
    )


def model_of(spec: Spec, files_at_hand: bool = False) -> ModelShape:
    """The model's shape: a known id, else the config.json of its source where that is at hand.

    `files_at_hand` is for the commands, which have their user's files. In the operator a path of
    the spec is a stranger's, and names a file of the operator's own container. Raises
    InvalidRequest.
    """
    source, name = spec.model.source, spec.model.id
    folder = source.host_path or source.image_path
    if source.builtin is not None:
        shape = model_at(builtin_path(source.builtin.value))
    elif known := known_model(name):
        shape = known
    elif folder is not None and files_at_hand:
        shape = replace(model_at(Path(folder)), name=name)
    else:
        raise InvalidRequest(
            f"unknown model {name}: known by name are {', '.join(KNOWN_MODELS)}; give "
            "`distserve plan` a folder with the model's config.json as model.source.hostPath, and "
            "write its numbers into the spec with mode: Manual"
        )
    return replace(shape, dtype_bytes=_DTYPE_BYTES.get(spec.model.dtype, shape.dtype_bytes))


def profile_of(
    spec: Spec,
    model: ModelShape,
    named: str | None = None,
    estimate: bool = False,
    texts: Texts | None = None,
) -> HardwareProfile:
    """`named`, a shipped profile or a file, replaces the spec's, which is never a file's name.

    `estimate` allows estimates, as the spec may, for a model that was not measured. They rest on
    data sheets, which step times of one's own have none of. Raises InvalidRequest, InvalidProfile
    or NoProfile.
    """
    source = spec.planning.hardware_profile_from
    if named and names_file(named):
        return _measured(load_profile(named), model, "--estimate" if estimate else "")
    if source and not named:
        allowed = "planning.estimate (--estimate)" if estimate or spec.planning.estimate else ""
        text = _text(source, texts or {}, "planning.hardwareProfileFrom", "--hardware-profile FILE")
        return _measured(parse_profile(text, str(source)), model, allowed)
    if spec.accelerator.type == AcceleratorType.CPU:
        raise InvalidRequest(
            "no step times are shipped for CPUs, nor data sheets to estimate them from; measure "
            "them with `distserve profile` and give --hardware-profile FILE (in the deployment: "
            "planning.hardwareProfileFrom)"
        )
    name = named or spec.planning.hardware_profile or DEFAULT_PROFILE
    if estimate or spec.planning.estimate:
        return with_estimates(name, "distserve", model)
    if name in ACCELERATORS and name != DEFAULT_PROFILE:
        raise NoProfile(
            f"no step times were measured on {name}; set planning.estimate: true (or --estimate)"
        )
    profile = shipped_profile(name)
    if model.name not in _models(profile):
        raise NoProfile(
            f"no profile for {model.name}, give --hardware-profile or --estimate "
            "(in the deployment: planning.estimate: true)"
        )
    return profile


def _models(profile: HardwareProfile) -> list[str]:
    return sorted({name for name, _ in profile.entries})


def _measured(own: HardwareProfile, model: ModelShape, estimate: str) -> HardwareProfile:
    """Raises NoProfile where a user's own step times are of other models, InvalidRequest where
    `estimate`, a field or flag, asks for what they lack."""
    if model.name in _models(own):
        return own
    lacks = (
        f"{own.name} has step times of {', '.join(_models(own)) or 'no model'}, not of {model.name}"
    )
    if estimate:
        raise InvalidRequest(f"{lacks}; {estimate} {_BESIDE_OWN_TIMES}")
    raise NoProfile(
        f"{lacks}; measure that, or name it so: `distserve profile --served-name {model.name}`"
    )


def _text(source: ConfigMapKey, texts: Texts, field: str, flag: str) -> str:
    if source not in texts:
        raise InvalidRequest(
            f"spec.{field}: no ConfigMap {source.config_map_name} with the key {source.key} is at "
            f"hand; create it in the deployment's namespace, or give {flag}"
        )
    return texts[source]


def nodes_of(offers: Iterable[Offer], instances: Sequence[InstanceRequest]) -> list[int]:
    """Accelerators of each node that placement lets the pods of all these instances use, fewest
    first: where roles differ, what only one of them may use is not counted."""
    return sorted(offer.amount for offer in offers if takes_all(offer.node, instances))


def why_none(resource: str, offers: Sequence[Offer], instances: Sequence[InstanceRequest]) -> str:
    """Why `nodes_of` finds none among these, the most frequent reason first, and what to do."""
    whys = ([why for one in instances if (why := misfit(one, offer.node))] for offer in offers)
    counted = ", ".join(f"{n} {why}" for why, n in Counter(why[0] for why in whys).most_common())
    return (
        f"the pods of every role may use none of the {len(offers)} nodes that offer {resource} "
        f"({counted}); change the podTemplates' nodeSelector, affinity or tolerations, or the nodes"
    )


def machine_of(
    spec: Spec,
    nodes: list[int] | None = None,
    per_node: int = NODE_ACCELERATORS,
    high_affinity: bool = False,
    network: str = DEFAULT_NETWORK,
    domains: Sequence[Sequence[int]] = (),
) -> Machine:
    """The given nodes, else `maxAccelerators` in nodes of `per_node`; a unit lies in one node, or
    with `high_affinity` in one of the domains where there are such."""
    limit = spec.planning.max_accelerators
    if nodes is None:
        if limit is None:
            raise InvalidRequest(
                "no nodes are known that all its pods may use: give "
                "spec.planning.maxAccelerators or --nodes"
            )
        full, rest = divmod(limit, per_node)
        nodes = [per_node] * full + ([rest] if rest else [])
    # Units inside a node are inside its domain anyway: the same question as without domains.
    within = domains if high_affinity else ()
    return Machine(nodes, limit, high_affinity, network, span_nodes=False, domains=within)


def _slo(slo: Slo | None) -> result.Slo:
    if slo is None:
        raise InvalidRequest("spec.slo is missing; a plan needs its ttft and tpot")
    percent = float(slo.attainment_percent)
    ttft_ms, tpot_ms = (parse_duration(text) * 1000 for text in (slo.ttft, slo.tpot))
    return result.Slo(ttft_ms, tpot_ms, percent, percent)


def _requests(spec: Spec, model: ModelShape, given: RequestSet | None, texts: Texts) -> RequestSet:
    """The load as requests that the model can serve."""
    limit = spec.model.max_model_len or model.max_positions
    if given is not None:
        return given.within(limit)
    if spec.workload is None:
        raise InvalidRequest("spec.workload is missing; add it, or give --requests FILE")
    if trace := spec.workload.trace:
        text = _text(trace, texts, "workload.trace", "--trace FILE")
        found = _of_trace(text, str(trace), limit)
        if isinstance(found, str):
            raise WorkloadError(found)
        return found

    def summary(lengths: LengthSummary) -> tuple[float, float]:
        return float(lengths.mean), float(lengths.p90)

    lengths = spec.workload.lengths
    assert lengths is not None, "the api has one of lengths and trace"
    drawn = _of_summary(summary(lengths.prompt_tokens), summary(lengths.output_tokens), limit)
    if isinstance(drawn, str):
        raise WorkloadError(drawn)
    return drawn


@lru_cache(maxsize=16)
def _of_summary(
    prompt: tuple[float, float], output: tuple[float, float], limit: int
) -> RequestSet | str:
    """As `_of_trace`: where few pairs fit, hundreds of thousands are drawn."""
    try:
        return from_summary(prompt, output, limit, SUMMARY_REQUESTS)
    except WorkloadError as error:
        return str(error)


@lru_cache(maxsize=4)
def _of_trace(text: str, origin: str, limit: int) -> RequestSet | str:
    """What it holds, or what is wrong with it. A megabyte takes a second, and the operator asks
    several times for each plan."""
    try:
        return parse_requests(text, origin).within(limit)
    except WorkloadError as error:
        return str(error)


def _within_memory(spec: Spec, profile: HardwareProfile, model: ModelShape) -> HardwareProfile:
    """The profile with no more memory than the engines are told to take."""
    if spec.accelerator.type == AcceleratorType.CPU:
        tokens = _tokens_of_kv_cache(spec, profile, model)
        return replace(profile, kv_budget_bytes=math.inf, max_tokens=tokens)
    share = min(
        float(section.accelerator_memory_utilization or DEFAULT_MEMORY_UTILIZATION)
        for section in spec.roles.values()
    )
    budget = profile.memory_bytes * share
    if budget >= profile.kv_budget_bytes:
        return profile
    return replace(profile, kv_budget_bytes=budget, max_tokens={})


def _tokens_of_kv_cache(
    spec: Spec, profile: HardwareProfile, model: ModelShape
) -> dict[tuple[str, int, int], int]:
    """Tokens whose KV fits the ranks' `kvCache`, by (model, tensor, pipeline)."""
    rank_bytes = parse_bytes(spec.accelerator.kv_cache or DEFAULT_KV_CACHE)
    return {
        (name, tensor, pipeline): rank_bytes
        * min(tensor, model.kv_heads)
        * pipeline
        // model.kv_bytes_per_token
        for name, tensor in profile.entries
        for pipeline in model.pipeline_degrees(model.layers)
        if name == model.name
    }
