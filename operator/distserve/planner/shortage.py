"""The machine holds no unit of the model: what the smallest one needs, against what is there.

Called where a placement search has nothing to judge. Such a machine is no mistake in the question:
the answer is a nearest miss, as with an SLO that nothing meets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from distserve.planner.errors import NoProfile
from distserve.planner.machine import Machine
from distserve.planner.memory import GIB, block_bytes, weight_bytes
from distserve.planner.placement_search import PlacementSearch
from distserve.planner.simulator import InstanceSpec
from distserve.planner.strategies import Fleet, strategy_class
from distserve.planner.units import Unit


@dataclass(frozen=True)
class Shortage:
    """The nearest unit, and one line with what it lacks and the cure."""

    unit: Unit
    reason: str


def shortage_of(search: PlacementSearch) -> Shortage:
    """Raises NoProfile where the step times are what is missing."""
    roles: tuple[str, ...] = ("prefill", "decode")
    if not strategy_class(search.evaluator.strategy).disaggregated:
        roles = ("hybrid",)
    nearest = []
    for role in roles:
        fitting = _smallest(search, role)
        if fitting is None:
            return _no_instance(search, roles, role)
        nearest.append(fitting)
    return _no_room(search, roles, _unit(nearest))


def _smallest(search: PlacementSearch, role: str) -> InstanceSpec | None:
    """The instance of fewest accelerators that holds the weights, on nodes of any size."""
    model = search.model
    boundless = replace(search, machine=Machine([model.heads * model.layers]))
    return min(boundless.specs(role), key=lambda spec: (spec.accelerators, spec.pp), default=None)


def _no_room(search: PlacementSearch, roles: tuple[str, ...], unit: Unit) -> Shortage:
    model, machine, budget_bytes = search.model, search.machine, search.profile.kv_budget_bytes
    fleet = unit.fleet
    specs = [spec for spec in (fleet.prefill, fleet.decode) if spec]
    degrees = ", ".join(
        f"{role} TP {spec.tp} x PP {spec.pp}" for role, spec in zip(roles, specs, strict=True)
    )
    needed_bytes = sum(spec.accelerators * weight_bytes(model, spec.tp, spec.pp) for spec in specs)
    there, needed = machine.accelerators, unit.accelerators
    memory = room = ""
    if math.isfinite(budget_bytes):
        memory = f" and {needed_bytes / GIB:.4g} GiB of memory for weights"
        room = f" with {there * budget_bytes / GIB:.4g} GiB"
    where, cure = " of one node", f"give at least {needed} accelerators in one node"
    if machine.high_affinity and not machine.span_nodes and len(specs) > 1:
        parts = " and ".join(str(spec.accelerators) for spec in specs)
        domain = " of one domain" if machine.domains else ""
        where = " (each instance's in one node)"
        cure = f"give room for {parts} in nodes{domain}"
    if not machine.span_nodes:
        cure += ", or mode: Manual, whose units and instances may span nodes"
    return Shortage(
        unit,
        f"{model.name} does not fit: its smallest unit ({degrees}) takes {needed} accelerators"
        f"{where}{memory}; the machine has {there}{room}, at most {machine.largest_node} in a "
        f"node; {cure}",
    )


def _no_instance(search: PlacementSearch, roles: tuple[str, ...], role: str) -> Shortage:
    """Even an instance as wide as is allowed has no memory for its weights."""
    model, profile, most = search.model, search.profile, search.max_ranks
    known = sorted(tp for name, tp in profile.entries if name == model.name)
    fixed = search.fixed_tp.get(role)
    splitting = [tp for tp in known if model.splits_into(tp)]
    allowed = [tp for tp in splitting if fixed in (None, tp)]
    if not allowed:
        raise NoProfile(_no_times(search, role, known, splitting))
    pipelines = model.pipeline_degrees(model.layers)
    degrees = [
        (tp, pp) for tp, pp in product(allowed, pipelines) if most is None or tp * pp <= most
    ]
    if not degrees:
        if fixed is not None and most is not None and fixed > most:
            raise NoProfile(
                f"{role} is fixed at TP {fixed}, and this engine runs instances of {most} rank; "
                f"leave --{role.replace('hybrid', 'prefill')}-tp out, or plan with --any-ranks"
            )
        raise NoProfile(
            f"step times of {model.name} are known at TP {', '.join(map(str, known))} alone, and "
            f"this engine runs instances of {most} rank; measure TP 1, or plan with --any-ranks"
        )
    tp, pp = min(degrees, key=lambda degree: _bytes(search, *degree))
    if not math.isfinite(profile.kv_budget_bytes):
        lacks = "has no room for one token of KV cache; raise accelerator.kvCache"
    else:
        lacks = (
            f"needs {_bytes(search, tp, pp) / GIB:.4g} GiB of each accelerator and "
            f"{profile.kv_budget_bytes / GIB:.4g} GiB are there; "
            "use accelerators with more memory or a smaller model"
        )
    limit = f" (this engine runs at most {most} rank an instance)" if most else ""
    spec = replace(search.template, tp=tp, pp=pp, kv_tokens=0)
    return Shortage(
        _unit([spec] * len(roles)),
        f"{model.name} does not fit: {role} at TP {tp} x PP {pp}{limit} {lacks}",
    )


def _bytes(search: PlacementSearch, tp: int, pp: int) -> float:
    """Memory of one accelerator without which nothing runs: its weights and one block."""
    return weight_bytes(search.model, tp, pp) + block_bytes(search.model, tp, pp)


def _no_times(
    search: PlacementSearch, role: str, known: Sequence[int], splitting: Sequence[int]
) -> str:
    """`splitting`: of the degrees whose times are known those that the heads split into."""
    model, name = search.model, search.model.name
    if not known:
        return f"no profile for {name}, give --hardware-profile or --estimate"
    if not splitting:
        return (
            f"step times of {name} are known at TP {', '.join(map(str, known))} alone, into which "
            f"its {model.heads} heads and {model.kv_heads} KV heads do not split; measure another"
        )
    return (
        f"no profile for {name} at the fixed {role} TP {search.fixed_tp.get(role)} (known: TP "
        f"{', '.join(map(str, splitting))}); fix one of these, or give a --hardware-profile that "
        "has it"
    )


def _unit(specs: list[InstanceSpec]) -> Unit:
    prefill, *rest = specs
    decode = rest[0] if rest else None
    return Unit(Fleet(prefill, decode, 1, 1 if decode else 0))
