"""Conditions move when something changes, and events tell of it once."""

from collections.abc import Callable
from typing import Any

from distserve.api.conditions import REASONS, Condition
from distserve.api.status import Status
from distserve.operator.conditions import MESSAGE_CHARACTERS, Fact, merged, transitions

NOW = 1_800_000_000.0
Make = Callable[..., Any]


def conditions(before: list[Any], now: float = NOW, **facts: Fact) -> list[Any]:
    known = {Condition[name.upper()]: fact for name, fact in facts.items()}
    return merged(before, known, 3, now)


def test_a_condition() -> None:
    assert conditions([], ready=Fact(None, "Why", "do this")) == [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "Why",
            "message": "do this",
            "lastTransitionTime": "2027-01-15T08:00:00Z",
            "observedGeneration": 3,
        }
    ]


def test_its_time_moves_with_its_status_alone() -> None:
    first = conditions([], ready=Fact(False, "A"))
    second = conditions(first, NOW + 60, ready=Fact(False, "B", "other words"))
    assert second[0]["lastTransitionTime"] == first[0]["lastTransitionTime"]
    third = conditions(second, NOW + 60, ready=Fact(True, "C"))
    assert third[0]["lastTransitionTime"] > second[0]["lastTransitionTime"]


def test_pods_that_come_and_go_make_no_news_of_the_fabric() -> None:
    unknown = conditions([], fabric_verified=Fact(None, "NotMeasured"))
    slow = conditions(unknown, fabric_verified=Fact(False, "SlowFabric", "a reads from b"))
    (event,) = transitions(unknown, slow)
    assert (event.type, event.reason, event.message) == ("Warning", "SlowFabric", "a reads from b")
    slower = conditions(slow, fabric_verified=Fact(False, "SlowFabric", "a reads from c"))
    assert transitions(slow, slower) == transitions(slower, unknown) == ()


def test_long_messages_are_cut() -> None:
    (found,) = conditions([], ready=Fact(False, "A", "x" * 5000))
    assert len(found["message"]) == MESSAGE_CHARACTERS


def test_events() -> None:
    def told(before: list[Any], **facts: Fact) -> list[tuple[str, str]]:
        after = conditions(before, **facts)
        return [(event.type, event.reason) for event in transitions(before, after)]

    assert told([], ready=Fact(False, "A")) == [], "nothing is ready from the start"
    assert told([], accepted=Fact(False, "A")) == [("Warning", "A")]
    bad = conditions([], ready=Fact(False, "A"), degraded=Fact(True, "D"), placed=Fact(True, "P"))
    assert told(bad, ready=Fact(True, "B")) == [("Normal", "B")]
    assert told(bad, ready=Fact(False, "A", "other words")) == []
    assert told(bad, ready=Fact(False, "B")) == [("Warning", "B")]
    assert told(bad, degraded=Fact(False, "E")) == [("Normal", "E")]
    assert told(bad, placed=Fact(True, "Q")) == [], "good before, good now"
    assert told(bad, prefill_ready=Fact(False, "A")) == [], "only says which part it is"


def test_all_conditions_that_there_are(new_world: Make) -> None:
    world = new_world().settle()
    assert [c["type"] for c in world.status["conditions"]] == [
        c.value for c in Condition if c is not Condition.HYBRID_READY
    ]
    Status.model_validate(world.status)
    for one in world.status["conditions"]:
        assert one["reason"] in {reason.value for reason in REASONS[Condition(one["type"])]}


def test_what_a_start_tells(new_world: Make) -> None:
    world = new_world().settle()
    assert [event.reason for event in world.events] == ["UpToDate", "Serving"]


def test_what_a_rollout_tells(new_world: Make) -> None:
    world = new_world(units=2).settle()
    world.events.clear()
    world.edit(images={"engine": "mine:2"}).settle()
    assert [event.reason for event in world.events] == ["RollingOut", "UpToDate"]
