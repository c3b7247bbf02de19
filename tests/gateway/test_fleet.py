"""Which instances are used: they come and go, are lost, or are left alone for what failed there."""

import asyncio
import math
from typing import Any

import aiohttp
import pytest
from tests.gateway.conftest import WAIT_SECONDS
from tests.gateway.fake_engine import OTHER_TOKENIZER, Fault
from tests.gateway.fake_text import alphabet
from tests.gateway.fleets import member

from distserve.gateway import client
from distserve.gateway.fleet import Flight, Member, handover_succeeded
from distserve.gateway.legs import LegFailed, _breakable
from distserve.wire.dialect import Phases


async def test_a_killed_decode_instance_is_replaced(houses: Any) -> None:
    house = await houses(decode=2)
    house.decodes[0].token_seconds = 0.02
    asked = asyncio.create_task(house.stream(max_tokens=40))
    await house.until(lambda: house.decodes[0].live)
    await asyncio.sleep(0)
    await house.decodes[0].stop()
    *events, _ = await asked
    text = "".join(e["choices"][0]["text"] for e in events if "choices" in e)
    assert text == alphabet("hello", 40)
    assert len(house.decodes[1].legs) == 1


def followers() -> int:
    """Tasks that follow an instance's state."""
    return sum("_follow_state" in repr(task.get_coro()) for task in asyncio.all_tasks())


async def test_a_node_that_is_lost_and_leaves_discovery_at_once_loses_no_stream(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection breaks: nobody is there to say so."""
    monkeypatch.setattr(client, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(client, "CALL_SECONDS", 0.2)
    house = await houses(decode=2)
    house.decodes[0].token_seconds = 0.02
    asked = asyncio.create_task(house.stream(max_tokens=40))
    await house.until(lambda: house.decodes[0].live)
    house.decodes[0].silent = True
    house.publish("decode-0")
    *events, _ = await asyncio.wait_for(asked, 20)
    assert "".join(e["choices"][0]["text"] for e in events) == alphabet("hello", 40)
    assert len(house.decodes[1].legs) == 1
    await house.until(lambda: followers() == 2)


async def test_a_decode_that_opens_at_a_node_that_was_lost_before_goes_on_elsewhere(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was chosen with its prefill, which had to queue."""
    monkeypatch.setattr(client, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(client, "CALL_SECONDS", 0.2)
    lost = []
    lose = Member.lost
    monkeypatch.setattr(Member, "lost", lambda member: (lost.append(member.name), lose(member)))
    house = await houses(decode=2)
    house.prefills[0].queue_gate = asyncio.Event()
    asked = asyncio.create_task(house.stream(max_tokens=8))
    await house.until(lambda: house.prefills[0].live)
    house.decodes[0].silent = True
    await house.until(lambda: "decode-0" in lost)
    house.prefills[0].queue_gate.set()
    *events, _ = await asyncio.wait_for(asked, 20)
    assert "".join(e["choices"][0]["text"] for e in events) == alphabet("hello", 8)
    assert len(house.prefills[0].legs) == 2, "the first one was to go on at the node"


async def test_a_leg_is_broken_off_once() -> None:
    """Its instance is given up again and again while it does not answer."""
    flight = Flight("leg", member("decode-0"), Phases.DECODE, 1, 1)
    with pytest.raises(LegFailed, match="does not answer any more"):
        async with _breakable(flight):
            flight.break_off()
            flight.break_off()
            await asyncio.sleep(WAIT_SECONDS)


async def test_an_instance_that_left_discovery_ends_its_streams_itself(houses: Any) -> None:
    house = await houses(decode=2)
    house.decodes[0].token_seconds = 0.02
    asked = asyncio.create_task(house.stream(max_tokens=40))
    await house.until(lambda: house.decodes[0].live)
    house.publish("decode-0")
    await house.until(lambda: len(house.gateway.fleet.members) == 2)
    assert house.decodes[0].live and followers() == 3
    *events, _ = await asked
    assert "".join(e["choices"][0]["text"] for e in events) == alphabet("hello", 40)
    assert not house.decodes[1].legs, "no replay"
    await house.until(lambda: followers() == 2)


async def test_without_any_instance_there_is_an_answer_with_retry_after(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await houses(prefill=0, ready=False)
    await house.until(lambda: house.gateway.fleet.ready())
    monkeypatch.setattr(house.gateway._runner.dispatcher, "_wait_seconds", 0.1)
    status, error, headers = await house.post(
        "/v1/completions", {"model": "test", "prompt": "hello"}
    )
    assert status == 503
    assert "no prefill instance" in error["error"]["message"]
    assert int(headers["retry-after"]) > 0


async def test_a_request_waits_for_an_instance_that_gets_ready(houses: Any) -> None:
    house = await houses()
    house.publish(**{"prefill-0": {"ready": False}})
    await house.until(lambda: not house.gateway.ready)
    asked = asyncio.create_task(house.complete())
    await house.until(lambda: house.gateway.admission.waiting == 1)
    house.publish()
    status, _ = await asked
    assert status == 200


async def test_a_request_waits_for_an_instance_whose_migrator_comes_back(houses: Any) -> None:
    """Not sent to fail there: its attempts would be spent in a moment."""
    house = await houses()
    (decode,) = house.decodes
    decode.ready = False
    decode.changed()
    await house.until(lambda: not house.gateway.ready)
    asked = asyncio.create_task(house.complete())
    await house.until(lambda: house.gateway.admission.waiting == 1)
    assert not house.prefills[0].legs
    decode.ready = True
    decode.changed()
    assert (await asked)[0] == 200
    assert len(decode.legs) == 1


@pytest.mark.parametrize("line", [b"nonsense", b'{"type": "\xff"}', b"[" * 100_000])
async def test_an_instance_that_talked_nonsense_is_listened_to_again(
    house: Any, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    (engine,) = house.prefills
    monkeypatch.setattr(engine, "_state_line", lambda: line + b"\n")
    engine.changed()
    await house.until(lambda: not house.gateway.ready)
    monkeypatch.undo()
    await house.until(lambda: house.gateway.ready)


async def test_draining_terminating_and_unready_instances_get_nothing_new(houses: Any) -> None:
    house = await houses(prefill=4, decode=1)
    house.prefills[0].draining = True
    house.prefills[0].changed()
    house.publish(**{"prefill-1": {"ready": False}, "prefill-2": {"terminating": True}})
    await house.until(lambda: len(house.gateway.fleet.ready()) == 2)
    for _ in range(4):
        assert (await house.complete())[0] == 200
    assert [len(engine.legs) for engine in house.prefills] == [0, 0, 0, 4]


async def test_an_instance_that_fails_again_and_again_is_left_alone_then_tried_again(
    houses: Any,
) -> None:
    house = await houses(prefill=2)
    bad = house.prefills[0]
    bad.faults += [Fault("refuse") for _ in range(3)]
    for _ in range(3):
        assert (await house.complete())[0] == 200
    member = house.gateway.fleet.members["prefill-0"]
    assert member.failures == 3
    assert member not in house.gateway.fleet.ready()
    await house.until(lambda: member in house.gateway.fleet.ready())
    assert (await house.complete())[0] == 200
    assert member.failures == 0


async def test_many_legs_that_fail_at_once_are_one_fault(houses: Any) -> None:
    house = await houses(prefill=2)
    member = house.gateway.fleet.members["prefill-0"]
    for _ in range(50):
        member.failed(100.0)
    assert member.evicted_until == 100.0 + 2.0
    member.failed(102.5)
    assert member.evicted_until == 102.5 + 4.0, "it fails again: longer"


async def test_a_decode_instance_that_takes_nothing_is_left_alone(houses: Any) -> None:
    """Its migrator restarts, say. The prefill instance is not blamed for it."""
    house = await houses(decode=2)
    house.decodes[0].faults += [Fault("closed") for _ in range(3)]
    for _ in range(3):
        assert (await house.complete())[0] == 200
    members = house.gateway.fleet.members
    assert members["decode-0"] not in house.gateway.fleet.ready()
    assert (members["prefill-0"].failures, members["decode-0"].failures) == (0, 3)
    assert not any(member.failed_handovers for member in members.values())


async def test_a_step_that_broke_does_not_stop_the_only_instances(house: Any) -> None:
    house.prefills[0].faults += [Fault("error") for _ in range(3)]
    assert (await house.complete())[0] == 502
    assert house.gateway.fleet.members["prefill-0"].failures == 3
    async with aiohttp.ClientSession() as http, http.get(f"{house.url}/readyz") as answer:
        assert answer.status == 200
    assert (await house.complete())[0] == 200


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("others", "taken"), [([], "0"), (["decode"], "0"), (["decode", "prefill"], "1")]
)
async def test_who_fails_is_not_left_alone_where_there_is_no_route_without_it(
    houses: Any, side: str, others: list[str], taken: str
) -> None:
    """One with another tokenizer, as a rollout brings it, makes a route once its unit is whole."""

    def of_a_rollout(engines: list[Any]) -> None:
        for engine in engines:
            if engine.name.endswith("-1"):
                engine.files |= OTHER_TOKENIZER

    counts = {role: 1 + (role in others) for role in ("prefill", "decode")}
    house = await houses(**counts, change=of_a_rollout)
    member = house.gateway.fleet.members[f"{side}-0"]
    member.evict(house.gateway.clock() + 1000.0, 0)
    assert house.gateway.ready
    assert (await house.complete())[0] == 200
    took = {engine.name for engine in house.engines if engine.legs}
    assert took == {f"prefill-{taken}", f"decode-{taken}"}


async def test_who_was_left_alone_is_taken_when_its_replacement_goes(houses: Any) -> None:
    house = await houses(prefill=2)
    fleet, later = house.gateway.fleet, house.gateway.clock() + 1000.0
    first, second = (fleet.members[f"prefill-{n}"] for n in range(2))
    first.evict(later, 0)
    assert first not in fleet.ready()
    second.evict(later, 0)
    assert {first, second} <= set(fleet.able()), "no better one is left"
    assert (await house.complete())[0] == 200
    second.evicted_until = 0.0
    assert first not in fleet.able()
    house.publish("prefill-1")
    await house.until(lambda: first in fleet.able())
    assert (await house.complete())[0] == 200


@pytest.mark.parametrize("decode", [1, 2])
async def test_a_prefill_instance_that_nobody_can_fetch_from_is_left_alone(
    houses: Any, decode: int
) -> None:
    """Its own legs end well, and as it soon has nothing to do it looks the best."""
    house = await houses(prefill=2, decode=decode)
    for engine in house.decodes:
        engine.unreachable.add("prefill-0")
    fleet, bad = house.gateway.fleet, house.prefills[0]
    for _ in range(2):
        assert (await house.complete())[0] == 200
    assert len(bad.legs) == 2
    assert [m.name for m in fleet.ready() if m.role == "prefill"] == ["prefill-1"]
    assert len([m for m in fleet.ready() if m.role == "decode"]) == decode
    assert (await house.complete())[0] == 200
    assert len(bad.legs) == 2

    member = fleet.members["prefill-0"]
    await house.until(lambda: member in fleet.ready())
    assert (await house.complete())[0] == 200
    assert member not in fleet.ready(), "once more, and it is left alone again"
    for engine in house.decodes:
        engine.unreachable.clear()
    await house.until(lambda: member in fleet.ready())
    assert (await house.complete())[0] == 200
    assert member.failed_handovers == 0
    await house.until_quiet()


async def test_a_decode_instance_that_can_fetch_from_nobody_is_left_alone_itself(
    houses: Any,
) -> None:
    house = await houses(prefill=3, decode=2, policy="RoundRobin")
    bad = house.decodes[0]
    bad.unreachable |= {engine.name for engine in house.prefills}
    fleet = house.gateway.fleet
    for _ in range(4):
        if fleet.members["decode-0"] in fleet.ready():
            assert (await house.complete())[0] == 200
    assert len(bad.legs) == 2
    assert len([m for m in fleet.ready() if m.role == "prefill"]) == 3
    await house.until_quiet()


LATER, BEFORE = math.inf, 0.0
"""When a hand-over began: since the last that failed, or before any had."""


class Pairs:
    """Instances between which hand-overs fail and go well."""

    def __init__(self, house: Any) -> None:
        self.fleet = house.gateway.fleet

    def fail(self, source: str, target: str, begun: float = LATER) -> None:
        members = self.fleet.members
        self.fleet.handover_failed(members[source], members[target], begun)

    def succeed(self, source: str, target: str) -> None:
        members = self.fleet.members
        handover_succeeded(members[source], members[target])

    @property
    def evicted(self) -> list[str]:
        return sorted(m.name for m in self.fleet.members.values() if m.evicted_until)


async def test_a_source_that_nobody_reaches_is_to_blame(houses: Any) -> None:
    """Though it is always met by the same target."""
    pairs = Pairs(await houses(prefill=2, decode=2))
    pairs.fail("prefill-0", "decode-0")
    assert not pairs.evicted
    pairs.fail("prefill-0", "decode-0")
    assert pairs.evicted == ["prefill-0"]


async def test_a_target_that_reaches_nobody_is_to_blame(houses: Any) -> None:
    """With many legs at once."""
    pairs = Pairs(await houses(prefill=3, decode=2))
    for _ in range(20):
        for source in ("prefill-0", "prefill-1", "prefill-2"):
            pairs.fail(source, "decode-0", BEFORE)
    assert pairs.evicted == ["decode-0"]


async def test_hand_overs_that_go_well_in_between_clear_both(houses: Any) -> None:
    pairs = Pairs(await houses(prefill=2))
    for _ in range(5):
        pairs.fail("prefill-0", "decode-0")
        pairs.succeed("prefill-0", "decode-0")
    assert not pairs.evicted


async def test_a_lost_connection_is_one_fault_however_many_hand_overs_it_ends(
    houses: Any,
) -> None:
    pairs = Pairs(await houses(prefill=2, decode=2))
    for _ in range(20):
        pairs.fail("prefill-0", "decode-0", BEFORE)
    assert not pairs.evicted
    pairs.fail("prefill-0", "decode-0", LATER)
    assert pairs.evicted == ["prefill-0"], "the next one began after it"


@pytest.mark.parametrize(("prefill", "decode", "blamed"), [(1, 1, []), (1, 2, ["decode-0"])])
async def test_without_a_reason_nobody_is_left_alone_whom_no_other_replaces(
    houses: Any, prefill: int, decode: int, blamed: list[str]
) -> None:
    pairs = Pairs(await houses(prefill=prefill, decode=decode))
    for _ in range(10):
        pairs.fail("prefill-0", "decode-0")
    assert pairs.evicted == blamed


async def test_hand_overs_that_fail_side_by_side_are_counted_once(houses: Any) -> None:
    house = await houses()
    (decode,) = house.decodes
    first, second = asyncio.Event(), asyncio.Event()
    decode.fetch_gate = first
    asked = [asyncio.create_task(house.complete()) for _ in range(4)]
    await house.until(lambda: len(decode.live) == 4)
    decode.unreachable.add("prefill-0")
    decode.fetch_gate = second
    first.set()
    await house.until(lambda: len(decode.legs) == 8)
    assert [m.failed_handovers for m in house.gateway.fleet.members.values()] == [1, 1]
    decode.unreachable.clear()
    second.set()
    assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 4
    await house.until_quiet()


async def test_an_instance_that_comes_back_is_used_again(houses: Any) -> None:
    house = await houses()
    await house.prefills[0].stop()
    await house.until(lambda: not house.gateway.ready)
    await house.prefills[0].start()
    await house.until(lambda: house.gateway.ready)
    assert (await house.complete())[0] == 200
