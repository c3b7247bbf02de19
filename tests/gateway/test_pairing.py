"""Which prefill and decode instance meet: the nearest, unless that means standing in a queue."""

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.api.strategies import StrategyName
from distserve.gateway import pairing
from distserve.gateway.discovery import Endpoint
from distserve.gateway.fleet import Fleet, Flight, Member
from distserve.gateway.generation import Generation
from distserve.gateway.metrics import Metrics
from distserve.gateway.policies import POLICIES
from distserve.gateway.routing import Route, Router, RoutingOptions, Stop, Wait, Waiting
from distserve.gateway.strategies import router_of
from distserve.wire.dialect import (
    InstanceInfo,
    InstanceState,
    Phases,
    RequestState,
    SamplingParams,
    Slo,
)

BLOCK_TOKENS = 4
BATCH_TOKENS = 32
PROMPT_TOKENS, OUTPUT_TOKENS = 8, 4
NEEDED_BLOCKS = 3
MAX_SEQS = 4
SCOPES = ("unit", "domain", "other")


@dataclass(frozen=True)
class Facts:
    """An instance as a test says it."""

    name: str
    role: str = "decode"
    unit: str = ""
    domain: str = ""
    revision: str = "1"
    fingerprint: str = "f"
    free_blocks: int = 100
    prompt_tokens: int = 0
    """Waiting there to be prefilled."""
    decoding: int = 0
    """Requests in its batch, which hold all that they may grow to."""
    choices: int = 1
    """That each of these has."""


def instance(facts: Facts) -> Member:
    made = Member(
        Endpoint(
            name=facts.name, url="http://x", role=facts.role, unit=facts.unit,
            revision=facts.revision, domain=facts.domain,
        )
    )  # fmt: skip
    made.info = InstanceInfo(
        instance=facts.name, role=facts.role, epoch=1, fingerprint=facts.fingerprint,
        model="m", strategy="s", block_tokens=BLOCK_TOKENS, total_blocks=100, max_model_len=64,
        max_num_seqs=MAX_SEQS, max_num_batched_tokens=BATCH_TOKENS, vocab_size=9,
        bos_token_id=None, eos_token_ids=[], chat_template=None, files={},
    )  # fmt: skip
    requests = [("decode", 0, 0)] * facts.decoding
    requests += [("waiting", facts.prompt_tokens, 0)] * bool(facts.prompt_tokens)
    held = -(-facts.prompt_tokens // BLOCK_TOKENS)
    made.observe(
        InstanceState(
            epoch=1, sequence=1, free_blocks=facts.free_blocks + held, total_blocks=100,
            waiting=0, running=0, draining=False,
            requests=[
                RequestState(leg=f"{facts.name}-{number}", phase=phase, context_tokens=context,
                             tokens_left=left, tokens_out=0, age_ms=0.0,
                             seats=facts.choices if phase == "decode" else 1)
                for number, (phase, context, left) in enumerate(requests)
            ],
        )
    )  # fmt: skip
    return made


def fleet_of(*facts: Facts) -> Fleet:
    fleet = Fleet(clock=lambda: 0.0)
    fleet.members = {one.name: instance(one) for one in facts}
    return fleet


def router(policy: str = "LeastOutstanding") -> Router:
    made = POLICIES[policy](None, random.Random(1))
    return router_of(StrategyName.DISAGGREGATED)(made, RoutingOptions())


def waiting(avoid: frozenset[str] = frozenset()) -> Waiting:
    generation = Generation(
        id="g", request_id="r", index=0, prompt=[1] * PROMPT_TOKENS,
        sampling=SamplingParams(seed=0, max_tokens=OUTPUT_TOKENS), choices=1, tokenizer="",
    )  # fmt: skip
    return Waiting(generation, 0.0, avoid)


def pair(fleet: Fleet, policy: str = "LeastOutstanding") -> tuple[str, ...]:
    answer = router(policy).choose(waiting(), fleet.ready())
    assert isinstance(answer, Route)
    return tuple(stop.member.name for stop in answer.stops)


def prefill(name: str, **facts: Any) -> Facts:
    return Facts(name, "prefill", **facts)


def test_a_unit_then_a_domain_then_anyone() -> None:
    p = prefill("p", unit="u0", domain="c0")
    own = Facts("own", unit="u0", domain="c0", free_blocks=NEEDED_BLOCKS)
    near = Facts("near", unit="u1", domain="c0", free_blocks=50)
    far = Facts("far", unit="u2", domain="c1")
    assert pair(fleet_of(p, own, near, far)) == ("p", "own")
    assert pair(fleet_of(p, near, far)) == ("p", "near")
    assert pair(fleet_of(p, far)) == ("p", "far")


@pytest.mark.parametrize(
    "full",
    [
        {"free_blocks": NEEDED_BLOCKS - 1},
        {"decoding": MAX_SEQS},
        {"decoding": 1, "choices": MAX_SEQS},
    ],
)
def test_a_unit_that_is_full_sends_to_its_domain(full: dict[str, int]) -> None:
    p = prefill("p", unit="u0", domain="c0")
    own = Facts("own", unit="u0", domain="c0", **full)
    near, far = Facts("near", unit="u1", domain="c0"), Facts("far", unit="u2", domain="c1")
    assert pair(fleet_of(p, own, near, far)) == ("p", "near")
    also = Facts("near", unit="u1", domain="c0", **full)
    assert pair(fleet_of(p, own, also, far)) == ("p", "far")


@pytest.mark.parametrize(("own_lacks", "chosen"), [(20, "own"), (21, "far")])
def test_where_all_are_full_twice_the_queue_is_borne(own_lacks: int, chosen: str) -> None:
    fleet = fleet_of(
        prefill("p", unit="u0", domain="c0"),
        Facts("own", unit="u0", domain="c0", free_blocks=NEEDED_BLOCKS - own_lacks),
        Facts("far", unit="u1", domain="c1", free_blocks=NEEDED_BLOCKS - 10),
    )
    assert pair(fleet) == ("p", chosen)


def test_a_prefill_whose_unit_can_go_on_is_taken_first() -> None:
    stuck = (prefill("p0", unit="u0", domain="c0"),
             Facts("d0", unit="u0", domain="c0", free_blocks=0))  # fmt: skip
    whole = (prefill("p1", unit="u1", domain="c1", prompt_tokens=BATCH_TOKENS),
             Facts("d1", unit="u1", domain="c1"))  # fmt: skip
    assert pair(fleet_of(*stuck, *whole)) == ("p1", "d1")
    busy = prefill("p1", unit="u1", domain="c1", prompt_tokens=BATCH_TOKENS + 1)
    assert pair(fleet_of(*stuck, busy, whole[1])) == ("p0", "d1"), "more than a batch waits there"


def test_inside_the_scope_the_policy_chooses() -> None:
    fleet = fleet_of(
        prefill("p", unit="u0", domain="c0"),
        *(Facts(f"d{n}", unit="u0", domain="c0", free_blocks=50 + n) for n in range(3)),
        Facts("far", unit="u1", domain="c1"),
    )
    assert pair(fleet) == ("p", "d2")
    turns = router("RoundRobin")
    chosen = [turns.choose(waiting(), fleet.ready()) for _ in range(6)]
    names = [one.stops[1].member.name for one in chosen if isinstance(one, Route)]
    assert names == ["d0", "d1", "d2"] * 2


def test_in_turn_is_fair_also_where_units_take_turns() -> None:
    units = [
        fact
        for unit in ("u0", "u1")
        for fact in (
            prefill(f"p-{unit}", unit=unit),
            *(Facts(f"d-{unit}-{n}", unit=unit) for n in range(2)),
        )
    ]
    turns, fleet = router("RoundRobin"), fleet_of(*units)
    chosen = [turns.choose(waiting(), fleet.ready()) for _ in range(8)]
    names = [one.stops[1].member.name for one in chosen if isinstance(one, Route)]
    assert sorted(names) == sorted(2 * [f"d-u{u}-{n}" for u in range(2) for n in range(2)])


def test_a_burst_stays_in_its_units_until_they_are_full() -> None:
    """What was sent since the last report counts: 2 units take 4 each, and only then do pairs
    cross, spread over both."""
    fleet = fleet_of(
        *(prefill(f"p{u}", unit=f"u{u}", domain=f"c{u}") for u in range(2)),
        *(Facts(f"d{u}", unit=f"u{u}", domain=f"c{u}") for u in range(2)),
    )
    routing, metrics = router(), Metrics(Slo(), 90)
    for number in range(2 * MAX_SEQS):
        answer = routing.choose(waiting(), fleet.ready())
        assert isinstance(answer, Route)
        metrics.observe_route(answer)
        for stop in answer.stops:
            name = f"{number}-{stop.phases}"
            flight = Flight(name, stop.member, stop.phases, PROMPT_TOKENS, OUTPUT_TOKENS)
            stop.member.take_off(flight)
    assert [fleet.members[f"d{u}"].legs for u in range(2)] == [MAX_SEQS] * 2
    value = metrics.registry.get_sample_value
    assert value("distserve_gateway_pairs_total", {"scope": "unit"}) == 2 * MAX_SEQS
    assert value("distserve_gateway_pairs_total", {"scope": "other"}) == 0


def test_what_pairs_share_is_counted() -> None:
    metrics = Metrics(Slo(), 90)
    p = instance(prefill("p", unit="u0", domain="c0"))
    partners = [Facts("a", unit="u0"), Facts("b", unit="u1", domain="c0"), Facts("c"), Facts("d")]
    for facts in partners:
        decode = instance(facts)
        metrics.observe_route(Route((Stop(p, Phases.PREFILL), Stop(decode, Phases.DECODE))))
    metrics.observe_route(Route((Stop(p, Phases.BOTH),)))
    value = metrics.registry.get_sample_value
    counts = {scope: value("distserve_gateway_pairs_total", {"scope": scope}) for scope in SCOPES}
    assert counts == {"unit": 1, "domain": 1, "other": 2}


async def test_the_gateway_counts_its_pairs(houses: Any) -> None:
    house = await houses()
    await house.complete(prompt=["ab", "cde"], max_tokens=5)
    await house.stream(max_tokens=1)
    await house.until_quiet()
    metrics = await house.metrics()
    counts = {s: metrics[f'distserve_gateway_pairs_total{{scope="{s}"}}'] for s in SCOPES}
    assert sum(counts.values()) == 2, "two prompts; the third ends where it was prefilled"


def test_many_instances_are_not_looked_at_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counted(one: Member, other: Member) -> pairing.Scope:
        nonlocal looks
        looks += 1
        return scope_of(one, other)

    scope_of = pairing.scope_of
    monkeypatch.setattr(pairing, "scope_of", counted)
    units = range(30)
    fleet = fleet_of(
        *(prefill(f"p{n}", unit=f"u{n}", domain=f"c{n % 3}") for n in units),
        *(Facts(f"d{n}", unit=f"u{n}", domain=f"c{n % 3}") for n in units),
    )
    assert pair(fleet) == ("p0", "d0")
    assert looks <= len(fleet.members)


# ---- for all fleets -------------------------------------------------------------------------

FEW = st.integers(0, 2)


@st.composite
def fleets(draw: st.DrawFn) -> list[Facts]:
    def facts(role: str, number: int) -> Facts:
        domain = draw(FEW)
        return Facts(
            f"{role}-{number}",
            role,
            unit=draw(st.sampled_from(["", f"u{domain}", f"v{domain}"])),
            domain=draw(st.sampled_from(["", f"c{domain}"])),
            revision=draw(st.sampled_from("12")),
            fingerprint=draw(st.sampled_from("ffg")),
            free_blocks=draw(st.integers(-20, 20)),
            prompt_tokens=draw(st.integers(0, 120)),
            decoding=draw(st.integers(0, 2 * MAX_SEQS)),
            choices=draw(st.integers(1, 3)),
        )

    roles = draw(st.lists(st.sampled_from(["prefill", "decode", "hybrid"]), max_size=7))
    return [facts(role, number) for number, role in enumerate(roles)]


def distance(one: Facts, other: Facts) -> int:
    if one.unit and one.unit == other.unit:
        return 0
    return 1 if one.domain and one.domain == other.domain else 2


def lacks(facts: Facts) -> float:
    seats = facts.decoding * facts.choices + bool(facts.prompt_tokens) + 1 - MAX_SEQS
    return max(0.0, (NEEDED_BLOCKS - facts.free_blocks) / 100, seats / MAX_SEQS)


def test_who_was_passed_over_is_not_taken_after_all() -> None:
    """A full instance nearby sends the request further, and does not call it back by having more
    room."""
    full = Facts("full", domain="c0", free_blocks=1, decoding=MAX_SEQS)
    idle = Facts("idle", free_blocks=0)
    assert pair(fleet_of(prefill("p", domain="c0"), full, idle)) == ("p", "idle")


@given(fleets(), st.sampled_from(sorted(POLICIES)))
def test_every_pair_is_as_near_as_the_rule_says(fleet: list[Facts], policy: str) -> None:
    answer = router(policy).choose(waiting(), fleet_of(*fleet).ready())
    able = {p: [d for d in fleet if d.role == "decode" and d.fingerprint == p.fingerprint]
            for p in fleet if p.role == "prefill"}  # fmt: skip
    if isinstance(answer, Wait):
        assert not any(able.values()) and all(one.role != "hybrid" for one in fleet)
        return
    phases = [(stop.member.role, stop.phases) for stop in answer.stops]
    if phases == [("hybrid", Phases.BOTH)]:
        return
    assert phases == [("prefill", Phases.PREFILL), ("decode", Phases.DECODE)]
    by_name = {facts.name: facts for facts in fleet}
    p, d = (by_name[answer.stops[at].member.name] for at in (0, -1))
    assert p.fingerprint == d.fingerprint
    kin = any(p.revision == d.revision for p, decodes in able.items() for d in decodes)
    assert not kin or p.revision == d.revision, "revisions are not mixed without need"
    others = [one for one in able[p] if one.revision == d.revision]
    shortest = min(map(lacks, others))
    nearer = [one for one in others if distance(p, one) < distance(p, d)]
    # Whoever was passed over on the way out lets the request wait, and far longer than another.
    as_near = [one for one in others if distance(p, one) <= distance(p, d)]
    if any(lacks(one) <= 2 * shortest for one in nearer):
        scope = min(distance(p, one) for one in nearer if lacks(one) <= 2 * shortest)
        assert distance(p, d) <= scope
    assert any(lacks(one) <= 2 * shortest for one in as_near), "a bearable one was in the choice"
