"""Fleets from bare parallelism: what the commands simulate in the default mode."""

from __future__ import annotations

from distserve.planner.compat.search import Configuration
from distserve.planner.errors import NoProfile
from distserve.planner.links import Link, load_link
from distserve.planner.models import ModelShape
from distserve.planner.profiles import HardwareProfile
from distserve.planner.simulator import InstanceSpec
from distserve.planner.strategies import Fleet


def instance_spec(
    model: ModelShape, profile: HardwareProfile, tp: int, pp: int, memory: bool = True
) -> InstanceSpec:
    """An instance with the default budgets; raises NoProfile where it cannot run, InvalidRequest
    where its stages would not be equal."""
    model.refuse_uneven(pp)
    times = profile.times(model, tp)
    tokens = profile.kv_tokens(model, tp, pp)
    if not tokens:
        raise NoProfile(
            f"{model.name} does not fit TP {tp} x PP {pp} on {profile.name}; "
            "give each instance more accelerators"
        )
    return InstanceSpec(
        times,
        tp,
        pp,
        tokens if memory else 1 << 40,
        serving=profile.serving(model, tp),
    )


def fleet_of(
    configuration: Configuration,
    model: ModelShape,
    profile: HardwareProfile,
    per_node: int,
    network: str,
    prefill_instances: int = 1,
    decode_instances: int = 1,
) -> Fleet:
    """One fleet of the reference's configuration space.

    KV cache moves inside a node where a segment of the whole fleet fits one, else between nodes.
    """
    cross = configuration.pp_cross
    prefill = instance_spec(
        model, profile, configuration.tp_prefill, cross * configuration.pp_prefill
    )
    if configuration.colocated:
        return Fleet(prefill, None, prefill_instances, 0)
    decode = instance_spec(model, profile, configuration.tp_decode, cross * configuration.pp_decode)
    fleet = Fleet(prefill, decode, prefill_instances, decode_instances)
    within = fleet.accelerators <= per_node * cross
    link: Link = load_link(network, "intra_node" if within else "inter_node")
    return Fleet(
        prefill,
        decode,
        prefill_instances,
        decode_instances,
        link=link,
        lanes=min(prefill.accelerators, decode.accelerators) if within else 1,
        kv_bytes_per_token=model.kv_bytes_per_token,
        shared_machines=within,
    )
