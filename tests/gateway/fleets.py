"""Fleets without engines, and what a router chooses of them."""

import random
from typing import Any

from distserve.api.strategies import StrategyName
from distserve.gateway import routing
from distserve.gateway.discovery import Endpoint
from distserve.gateway.fleet import Fleet, Member
from distserve.gateway.generation import Generation
from distserve.gateway.policies import POLICIES
from distserve.gateway.prefix import PrefixIndex
from distserve.gateway.routing import Route, RoutingOptions, Wait, Waiting
from distserve.gateway.strategies import router_of
from distserve.wire.dialect import (
    InstanceInfo,
    InstanceState,
    RequestState,
    SamplingParams,
)

SIZE = 4


def member(name: str, role: str = "prefill", **fields: Any) -> Member:
    endpoint = {k: fields.pop(k) for k in ("unit", "revision", "domain") if k in fields}
    made = Member(Endpoint(name=name, url="http://x", role=role, **endpoint))
    made.info = InstanceInfo(
        instance=name, role=role, epoch=1, fingerprint=fields.pop("fingerprint", "f"),
        model="m", strategy="s", block_tokens=SIZE, total_blocks=100,
        max_model_len=fields.pop("context", 64), max_num_seqs=8, max_num_batched_tokens=32,
        vocab_size=9, bos_token_id=None, eos_token_ids=[], chat_template=None, files={},
    )  # fmt: skip
    report(made, **fields)
    return made


def report(
    member: Member,
    free: int = 100,
    requests: list[tuple[str, str, int, int]] | None = None,
    draining: bool = False,
) -> None:
    """Requests: (leg, phase, context tokens, tokens left)."""
    member.observe(
        InstanceState(
            epoch=1, sequence=1, free_blocks=free, total_blocks=100, waiting=0, running=0,
            draining=draining,
            requests=[
                RequestState(leg=leg, phase=phase, context_tokens=context, tokens_left=left,
                             tokens_out=0, age_ms=0.0)
                for leg, phase, context, left in requests or []
            ],
        )
    )  # fmt: skip


def fleet_of(*members: Member) -> Fleet:
    fleet = Fleet(clock=lambda: 0.0)
    fleet.members = {m.name: m for m in members}
    return fleet


def generation(prompt: int | list[int] = 8, max_tokens: int = 4) -> Generation:
    ids = [1] * prompt if isinstance(prompt, int) else prompt
    return Generation(
        id="g", request_id="r", index=0, prompt=ids,
        sampling=SamplingParams(seed=0, max_tokens=max_tokens), choices=1, tokenizer="",
    )  # fmt: skip


def choose(
    fleet: Fleet,
    policy: str = "LeastOutstanding",
    strategy: StrategyName = StrategyName.DISAGGREGATED,
    index: PrefixIndex | None = None,
    min_remote: int = 0,
    avoid: frozenset[str] = frozenset(),
    prior: int = 0,
    begun_on: str = "",
    **fields: Any,
) -> list[tuple[str, str]] | str:
    """[(instance, phases)], or why there is no route."""
    router = router_of(strategy)(
        POLICIES[policy](index, random.Random(1)), RoutingOptions(min_remote)
    )
    waiting = Waiting(generation(**fields), 0.0, avoid, prior, fingerprint=begun_on)
    answer = routing.choose(router, waiting, fleet)
    if isinstance(answer, Wait):
        return answer.reason
    assert isinstance(answer, Route)
    return [(stop.member.name, str(stop.phases)) for stop in answer.stops]
