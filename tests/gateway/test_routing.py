"""Routers and policies as pure decisions."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from tests.gateway.fleets import choose, fleet_of, generation, member, report

from distserve.api.strategies import StrategyName
from distserve.gateway.dispatch import Dispatcher, _take
from distserve.gateway.fleet import Fleet, Flight, Member
from distserve.gateway.policies import POLICIES
from distserve.gateway.routing import Route, RoutingOptions, Stop, Wait, Waiting
from distserve.gateway.strategies import router_of
from distserve.wire.dialect import (
    Phases,
    RequestState,
)


def test_a_route_has_a_prefill_and_a_decode_instance() -> None:
    assert choose(fleet_of(member("p"), member("d", "decode"))) == [
        ("p", "prefill"), ("d", "decode"),
    ]  # fmt: skip
    assert choose(fleet_of(member("p"), member("d", "decode")), max_tokens=1) == [("p", "both")]
    assert choose(fleet_of(member("h", "hybrid"))) == [("h", "both")]


def test_what_is_missing_is_named() -> None:
    assert choose(fleet_of()) == "no prefill instance is ready"
    assert choose(fleet_of(member("p"))) == "no decode instance is ready"
    apart = fleet_of(member("p"), member("d", "decode", fingerprint="other"))
    assert choose(apart) == "no prefill and decode instance with equal fingerprints are ready"


@pytest.mark.parametrize("kind", ["revision", "unit", "domain"])
def test_the_decode_instance_shares_what_it_can(kind: str) -> None:
    near, far = {kind: "b"}, {kind: "a"}
    fleet = fleet_of(
        member("p", **near), member("d1", "decode", **far), member("d2", "decode", free=3, **near)
    )
    assert choose(fleet) == [("p", "prefill"), ("d2", "decode")]


def test_a_revision_goes_before_a_unit() -> None:
    fleet = fleet_of(
        member("p", revision="2", unit="u"),
        member("d1", "decode", revision="1", unit="u"),
        member("d2", "decode", revision="2", unit="v"),
    )
    assert choose(fleet) == [("p", "prefill"), ("d2", "decode")]


def test_a_revision_without_decode_instances_draws_no_requests() -> None:
    fleet = fleet_of(
        member("p1", revision="2"),
        member("p2", revision="1", requests=[("x", "waiting", 500, 1)]),
        member("d", "decode", revision="1"),
    )
    assert choose(fleet) == [("p2", "prefill"), ("d", "decode")]


def test_failed_instances_are_avoided_where_there_are_others() -> None:
    fleet = fleet_of(member("p1"), member("p2"), member("d1", "decode"), member("d2", "decode"))
    avoid = frozenset({"p1", "d1"})
    assert choose(fleet, avoid=avoid) == [("p2", "prefill"), ("d2", "decode")]
    alone = fleet_of(member("p1"), member("d1", "decode"), member("d2", "decode"))
    assert choose(alone, avoid=avoid) == [("p1", "prefill"), ("d2", "decode")]


def test_the_prefill_with_the_fewest_outstanding_tokens() -> None:
    fleet = fleet_of(
        member("p1", requests=[("a", "waiting", 30, 1), ("b", "prefill", 10, 1)]),
        member("p2", requests=[("c", "waiting", 39, 1), ("d", "offered", 500, 1)]),
        member("d", "decode"),
    )
    assert choose(fleet) == [("p2", "prefill"), ("d", "decode")]


def test_the_decode_with_the_most_blocks_after_reserving() -> None:
    fleet = fleet_of(
        member("p"),
        member("d1", "decode", free=50, requests=[("a", "expected", 40, 40)]),
        member("d2", "decode", free=40, requests=[("b", "decode", 8, 8)]),
    )
    assert fleet.members["d1"].spare_blocks == 30
    assert fleet.members["d2"].spare_blocks == 38
    assert choose(fleet) == [("p", "prefill"), ("d2", "decode")]


def test_what_was_sent_counts_until_the_instance_reports_it() -> None:
    one = member("p")
    flight = Flight("leg", one, Phases.PREFILL, prompt_tokens=40, output_tokens=8)
    one.take_off(flight)
    assert (one.outstanding_tokens, one.spare_blocks, one.legs) == (40, 90, 1)
    report(one, free=90, requests=[("leg", "prefill", 40, 0)])
    assert (one.outstanding_tokens, one.spare_blocks, one.legs) == (40, 90, 1), "not twice"
    flight.land()
    assert (one.outstanding_tokens, one.legs) == (0, 0), "known here before it is reported"
    report(one)
    assert (one.outstanding_tokens, one.spare_blocks, one.legs) == (0, 100, 0)


@pytest.mark.parametrize("choices", [1, 4])
@pytest.mark.parametrize("prior", [0, 3])
def test_a_leg_counts_the_same_before_and_after_its_report(choices: int, prior: int) -> None:
    """As engines report it while it waits: what all its choices may grow to, and their seats."""
    one = member("d", "decode")
    waiting = Waiting(generation(8, 16), 0.0, prior_tokens=prior, choices=choices)
    with _take(Route((Stop(one, Phases.DECODE),)), waiting) as taken:
        ((_, flight),) = taken.stops
        before = one.spare_blocks, one.legs, one.seats
        assert before[1:] == (1, choices)
        reported = RequestState(
            leg=flight.leg, phase="expected", context_tokens=8 + prior,
            tokens_left=choices * (16 - prior), tokens_out=prior, seats=choices, age_ms=0.0,
        )  # fmt: skip
        assert one.state is not None
        one.observe(msgspec.structs.replace(one.state, requests=[reported]))
        assert (one.spare_blocks, one.legs, one.seats) == before


class Watched(list[RequestState]):
    """Counts how often somebody goes through it."""

    times = 0

    def __iter__(self) -> Iterator[RequestState]:
        self.times += 1
        return super().__iter__()


def test_what_was_reported_is_gone_through_once_however_many_requests_come() -> None:
    decode = member("d", "decode", requests=[("a", "decode", 8, 8)])
    fleet = fleet_of(member("p"), decode)
    assert decode.state is not None
    reported = Watched(decode.state.requests)
    decode.observe(msgspec.structs.replace(decode.state, requests=reported))
    choose(fleet)
    times = reported.times
    for _ in range(10):
        assert choose(fleet) == [("p", "prefill"), ("d", "decode")]
    assert reported.times == times
    decode.take_off(Flight("b", decode, Phases.DECODE, 40, 8))
    assert decode.spare_blocks == 100 - 2 - 12, "but for what changes"
    assert reported.times > times


def test_a_burst_is_spread_before_any_report() -> None:
    fleet = fleet_of(*(member(f"p{i}") for i in range(4)), member("d", "decode"))
    for number in range(40):
        (name, _), _ = choose(fleet)
        chosen = fleet.members[name]
        chosen.take_off(Flight(f"leg{number}", chosen, Phases.PREFILL, 8, 4))
    assert [fleet.members[f"p{i}"].legs for i in range(4)] == [10] * 4


def left_alone(fleet: Fleet, *names: str) -> Fleet:
    for name in names:
        fleet.members[name].evict(fleet.clock(), 0)
    return fleet


@pytest.mark.parametrize("broken", ["p-new", "d-new"])
def test_a_broken_unit_with_another_fingerprint_is_left_alone(broken: str) -> None:
    """A rollout's first one, whose prefill instance soon has nothing to do and so looks best."""
    old = member("p-old", requests=[("r", "waiting", 60, 1)]), member("d-old", "decode")
    new = member("p-new", fingerprint="g"), member("d-new", "decode", fingerprint="g")
    fleet = left_alone(fleet_of(*old, *new), broken)
    assert choose(fleet) == [("p-old", "prefill"), ("d-old", "decode")]


def test_a_broken_unit_of_another_strategy_is_left_alone() -> None:
    old = member("p", requests=[("r", "waiting", 60, 1)]), member("d", "decode")
    fleet = left_alone(fleet_of(*old, member("h", "hybrid")), "h")
    assert choose(fleet) == [("p", "prefill"), ("d", "decode")]
    left_alone(fleet, "d")
    assert choose(fleet, strategy=StrategyName.COLOCATED) == [("h", "both")], "no route without"


def test_without_a_route_only_those_are_taken_again_that_nobody_replaces() -> None:
    fleet = fleet_of(member("p"), member("d0", "decode"), member("d1", "decode", free=5))
    assert choose(left_alone(fleet, "p", "d0")) == [("p", "prefill"), ("d1", "decode")]


def test_round_robin_takes_turns() -> None:
    router = router_of(StrategyName.COLOCATED)(
        POLICIES["RoundRobin"](None, random.Random(1)), RoutingOptions()
    )
    fleet = fleet_of(*(member(n, "hybrid") for n in "bca"))
    waiting = Waiting(generation(), 0.0)
    routes = [router.choose(waiting, fleet.ready()) for _ in range(5)]
    assert [r.stops[0].member.name for r in routes if isinstance(r, Route)] == list("abcab")


def test_power_of_two_never_takes_the_worst() -> None:
    loads = {"a": 90, "b": 10, "c": 50}
    fleet = fleet_of(
        *(member(n, "hybrid", requests=[("x", "waiting", t, 1)]) for n, t in loads.items())
    )
    policy = POLICIES["PowerOfTwoChoices"](None, random.Random(7))
    picks = {policy.pick(fleet.ready(), generation(), Phases.BOTH).name for _ in range(60)}
    assert picks == {"b", "c"}


@pytest.mark.parametrize("strategy", [StrategyName.COLOCATED, StrategyName.CHUNKED_PREFILL])
def test_one_instance_does_both_phases(strategy: StrategyName) -> None:
    fleet = fleet_of(member("p"), member("h1", "hybrid", draining=True), member("h2", "hybrid"))
    assert choose(fleet, strategy=strategy) == [("h2", "both")]
    assert choose(fleet_of(member("p")), strategy=strategy) == "no hybrid instance is ready"


def test_every_strategy_has_a_router() -> None:
    for name in StrategyName:
        assert callable(router_of(name))


def test_first_come_first_asked() -> None:
    for name in StrategyName:
        router = router_of(name)(POLICIES["RoundRobin"](None, random.Random(1)), RoutingOptions())
        late, early = Waiting(generation(), 2.0), Waiting(generation(), 1.0)
        assert router.order([late, early], fleet_of()) == [early, late]


# ---- units of two kinds, while a rollout runs ------------------------------------------------


def rollout(**new: Any) -> Fleet:
    """A unit of before with much to do, and a new one with nothing."""
    waits = [("r", "waiting", 60, 1)]
    return fleet_of(
        member("p-old", requests=waits), member("d-old", "decode", free=20),
        member("p-new", **new), member("d-new", "decode", **new),
    )  # fmt: skip


OLD, NEW = ([(f"p-{unit}", "prefill"), (f"d-{unit}", "decode")] for unit in ("old", "new"))


@pytest.mark.parametrize(
    ("max_tokens", "route"), [(24, NEW), (25, OLD), (56, OLD), (57, NEW)],
    ids=["fits both", "old alone", "just fits", "fits none: one says so"],
)  # fmt: skip
def test_a_request_goes_where_its_end_is_within_the_context(
    max_tokens: int, route: list[tuple[str, str]]
) -> None:
    """Also a replay, of which less is left."""
    for prior in (0, 20):
        assert choose(rollout(context=32), prior=prior, max_tokens=max_tokens) == route


def test_one_that_is_left_alone_is_taken_before_one_that_is_too_short() -> None:
    fleet = fleet_of(member("h-old", "hybrid"), member("h-new", "hybrid", context=32))
    left_alone(fleet, "h-old")
    assert choose(fleet, max_tokens=40) == [("h-old", "both")]


async def test_those_who_wait_for_the_same_are_asked_for_once() -> None:
    """Each instance that tells its state has all of them asked for."""

    class Counting:
        asked = 0

        def choose(self, waiting: Waiting, members: list[Member]) -> Route | Wait:
            self.asked += 1
            return Wait("no prefill instance is ready")

        def order(self, waiting: Sequence[Waiting], fleet: Fleet) -> Sequence[Waiting]:
            return waiting

        def complete(self, ready: list[Member]) -> bool:
            return False

    router, fleet = Counting(), fleet_of(member("d", "decode"))
    dispatcher = Dispatcher(router, fleet)
    tasks = [
        asyncio.create_task(dispatcher.dispatch(generation(), 1, frozenset(), 0, ""))
        for _ in range(50)
    ]
    await asyncio.sleep(0)
    router.asked = 0
    fleet.notify()
    assert router.asked == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_text_goes_on_with_the_model_that_began_it() -> None:
    fleet = rollout(fingerprint="g")
    assert choose(fleet) == NEW
    assert choose(fleet, begun_on="f", prior=2) == OLD
    assert choose(fleet, begun_on="gone", prior=2) == NEW


@pytest.mark.parametrize("failed", ["p-old", "d-old"])
def test_it_goes_on_elsewhere_where_that_model_fails(failed: str) -> None:
    fleet = rollout(fingerprint="g")
    assert choose(fleet, begun_on="f", prior=2, avoid=frozenset({failed})) == NEW
    left_alone(fleet, failed)
    assert choose(fleet, begun_on="f", prior=2) == NEW


# ---- two strategies at once -----------------------------------------------------------------


def units(pairs: int, hybrids: int) -> list[Member]:
    return [
        *(member(f"{role[0]}{n}", role, unit=f"u{n}", revision="1")
          for n in range(pairs) for role in ("prefill", "decode")),
        *(member(f"h{n}", "hybrid", unit=f"v{n}", revision="2") for n in range(hybrids)),
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", StrategyName)
@pytest.mark.parametrize(("pairs", "hybrids"), [(9, 1), (5, 5), (1, 9)])
def test_a_rollout_to_another_strategy_leaves_no_unit_idle(
    strategy: StrategyName, pairs: int, hybrids: int
) -> None:
    """Of 40 requests each of ten units takes four, whichever strategy the gateway was told."""
    fleet = fleet_of(*units(pairs, hybrids))
    for number in range(40):
        route = choose(fleet, strategy=strategy)
        assert isinstance(route, list)
        for name, phases in route:
            chosen = fleet.members[name]
            chosen.take_off(Flight(f"{number}-{phases}", chosen, Phases(phases), 8, 4))
    decoding = [m for m in fleet.members.values() if m.role != "prefill"]
    assert [m.legs for m in decoding] == [4] * 10


@pytest.mark.parametrize(("decoding", "taken"), [(2, ("d0", "decode")), (4, ("h0", "both"))])
def test_an_idle_prefill_does_not_draw_all_to_a_full_decode(
    decoding: int, taken: tuple[str, str]
) -> None:
    fleet = fleet_of(*units(1, 1))
    report(fleet.members["h0"], requests=[(f"h{n}", "decode", 8, 4) for n in range(3)])
    report(fleet.members["d0"], requests=[(f"d{n}", "decode", 8, 4) for n in range(decoding)])
    for strategy in StrategyName:
        assert choose(fleet, strategy=strategy)[-1] == taken


def test_prompts_that_wait_count_as_much() -> None:
    fleet = fleet_of(*units(1, 1))
    report(fleet.members["h0"], requests=[(f"h{n}", "decode", 8, 4) for n in range(3)])
    report(fleet.members["p0"], requests=[("p", "waiting", 64, 1)])
    assert choose(fleet) == [("h0", "both")]


def test_what_failed_on_one_kind_goes_to_the_other() -> None:
    fleet = fleet_of(*units(1, 1))
    report(fleet.members["d0"], requests=[(f"d{n}", "decode", 8, 4) for n in range(8)])
    assert choose(fleet, avoid=frozenset({"h0"})) == [("p0", "prefill"), ("d0", "decode")]
    report(fleet.members["h0"], requests=[(f"h{n}", "decode", 8, 4) for n in range(9)])
    assert choose(fleet, avoid=frozenset({"d0"})) == [("h0", "both")]


def test_instances_that_do_both_phases_exchange_nothing() -> None:
    """They have no migrator."""
    fleet = fleet_of(*(member(f"h{n}", "hybrid", unit="u", free=90 + n) for n in range(2)))
    assert choose(fleet) == [("h1", "both")]
    assert choose(fleet_of(member("p"), member("h", "hybrid"))) == [("h", "both")]


# ---- prefix caches --------------------------------------------------------------------------
