"""Units are replaced one at a time, whatever happens on the way."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.operator.model import Ref
from distserve.operator.rollout import Rules, UnitState, next_step

OLD = UnitState("old", ready=True, down=False)
NEW = UnitState("new", ready=True, down=False)
COMING = UnitState("new", ready=False, down=True)
BROKEN = UnitState("old", ready=False, down=True)


def rules(units: int, **more: Any) -> Rules:
    return Rules(units, **{"target": "new", "current": "old", **more})


def test_the_extra_unit_comes_first() -> None:
    step = next_step({0: OLD, 1: OLD}, rules(2))
    assert step.revisions == {0: "old", 1: "old", 2: "new"}
    assert step.surge == {2}


def test_then_one_unit_is_replaced() -> None:
    step = next_step({0: OLD, 1: OLD, 2: NEW}, rules(2))
    assert step.revisions == {0: "new", 1: "old", 2: "new"}


def test_the_next_one_waits_for_it() -> None:
    step = next_step({0: COMING, 1: OLD, 2: NEW}, rules(2))
    assert step.revisions == {0: "new", 1: "old", 2: "new"}


def test_at_the_end_the_extra_unit_goes() -> None:
    assert next_step({0: NEW, 1: COMING, 2: NEW}, rules(2)).revisions.keys() == {0, 1, 2}
    step = next_step({0: NEW, 1: NEW, 2: NEW}, rules(2))
    assert step.revisions == {0: "new", 1: "new"}
    assert not step.rolling


def test_in_place_where_units_may_be_missing() -> None:
    step = next_step({0: OLD, 1: OLD, 2: OLD}, rules(3, surge=0, unavailable=2))
    assert step.revisions == {0: "new", 1: "new", 2: "old"}


def test_without_room_it_waits_or_replaces_one() -> None:
    waits = next_step({0: OLD, 1: OLD}, rules(2), frozenset({2}))
    assert waits.revisions == {0: "old", 1: "old", 2: "new"} and waits.full
    goes = next_step({0: OLD, 1: OLD}, rules(2, one_when_full=True), frozenset({2}))
    assert goes.revisions == {0: "new", 1: "old", 2: "new"}
    # The room that the replaced unit leaves is its own: no extra unit may be put there.
    after = next_step({0: COMING, 1: OLD}, rules(2, one_when_full=True), frozenset({2}))
    assert after.revisions == {0: "new", 1: "old"}


def test_what_serves_nobody_is_replaced_at_once() -> None:
    step = next_step({0: BROKEN, 1: BROKEN, 2: OLD}, rules(3))
    assert step.revisions == {0: "new", 1: "new", 2: "old", 3: "new"}


HALF = UnitState("old", ready=False, down=False)


def test_half_a_unit_goes_when_enough_others_are_ready() -> None:
    assert next_step({0: HALF}, rules(1)).revisions == {0: "old", 1: "new"}
    assert next_step({0: HALF, 1: NEW}, rules(1)).revisions == {0: "new", 1: "new"}


def test_halves_alone_go_one_by_one() -> None:
    alone = rules(2, surge=0, unavailable=1)
    three = {0: HALF, 1: HALF, 2: HALF}
    assert next_step(three, rules(3)).revisions == {0: "old", 1: "old", 2: "old", 3: "new"}
    assert next_step(three | {3: COMING}, rules(3)).revisions[0] == "old"
    assert next_step(three | {3: NEW}, rules(3)).revisions[0] == "new"
    assert next_step({0: HALF, 1: OLD}, alone).revisions == {0: "new", 1: "old"}
    assert next_step({0: COMING, 1: HALF}, alone).revisions == {0: "new", 1: "old"}


def test_paused() -> None:
    step = next_step({0: COMING, 1: OLD, 2: BROKEN, 3: NEW}, rules(3, paused=True))
    assert step.revisions == {0: "new", 1: "old", 2: "old", 3: "new"}


def test_a_new_unit_of_a_paused_rollout_is_like_the_others() -> None:
    assert next_step({0: OLD}, rules(2, paused=True)).revisions == {0: "old", 1: "old"}


def test_scaling_down_takes_the_highest() -> None:
    assert next_step({0: NEW, 1: NEW, 2: NEW}, rules(1, current="new")).revisions == {0: "new"}


def test_an_edit_goes_straight_to_the_newest_target() -> None:
    step = next_step({0: NEW, 1: OLD, 2: COMING}, rules(2, target="newest"))
    # u2, which was coming up for the edit before, serves nobody.
    assert step.revisions == {0: "new", 1: "old", 2: "newest"}


STATES = st.builds(
    UnitState,
    st.sampled_from(["old", "new", "older", ""]),
    ready=st.booleans(),
    down=st.booleans(),
).map(lambda s: UnitState(s.revision, s.ready and bool(s.revision), s.down and not s.ready))


@given(
    st.dictionaries(st.integers(0, 6), STATES, max_size=7),
    st.integers(0, 5),
    st.integers(0, 2),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)
def test_no_step_takes_more_than_it_may(
    states: dict[int, UnitState],
    units: int,
    surge: int,
    unavailable: int,
    paused: bool,
    one_when_full: bool,
) -> None:
    given_rules = rules(
        units, surge=surge, unavailable=unavailable, paused=paused, one_when_full=one_when_full
    )
    step = next_step(states, given_rules)
    assert set(range(units)) <= step.revisions.keys()
    assert len(step.revisions) <= units + surge
    kept = [u for u, s in states.items() if s.ready and step.revisions.get(u) == s.revision]
    stopped = [
        u for u, s in states.items()
        if s.ready and u in step.revisions and step.revisions[u] != s.revision
    ]  # fmt: skip
    assert not stopped or len(kept) >= units - unavailable
    assert not (paused and stopped)
    # Those above the number that was asked for go when the others do without them, or when there
    # are more of them than there may be.
    gone = [u for u, s in states.items() if s.ready and u not in step.revisions]
    extra = [u for u in step.revisions if u >= units]
    assert not gone or len(kept) >= units or len(extra) == surge


@pytest.mark.parametrize("surge,unavailable", [(1, 0), (0, 1), (2, 1)])
def test_it_ends(surge: int, unavailable: int) -> None:
    states = dict.fromkeys(range(4), OLD)
    for _ in range(20):
        step = next_step(states, rules(4, surge=surge, unavailable=unavailable))
        states = {
            unit: UnitState(revision, revision == states.get(unit, COMING).revision, False)
            for unit, revision in step.revisions.items()
        }
    assert states == dict.fromkeys(range(4), NEW)


def one_by_one(world: Any, at_least: int) -> Callable[[Any], None]:
    def check(_: Any) -> None:
        assert world.ready_units() >= at_least
        for unit in {pod.unit for pod in world.pods.values()} - {""}:
            alive = {p.revision for p in world.pods.values() if p.unit == unit}
            assert len(alive) == 1, f"{unit} mixes {alive}"

    return check


def test_a_rollout_keeps_all_units_serving(new_world: Callable[..., Any]) -> None:
    world = new_world(units=3).settle()
    old = world.status["revision"]["current"]
    world.edit(model={**world.document["spec"]["model"], "maxModelLen": 64})
    world.settle(check=one_by_one(world, 3))
    new = world.status["revision"]["current"]
    assert new != old
    assert world.units() == {"u0": {new}, "u1": {new}, "u2": {new}}
    assert world.condition("Progressing")["reason"] == "UpToDate"
    assert world.decide().actions == ()


def test_without_surge_one_unit_is_missing(new_world: Callable[..., Any]) -> None:
    rollout = {"maxSurgeUnits": 0, "maxUnavailableUnits": 1}
    world = new_world(units=3, rollout=rollout).settle()
    world.edit(images={"engine": "mine:2"})
    world.settle(check=one_by_one(world, 2))
    assert len(world.units()) == 3
    assert world.condition("Ready")["status"] == "True"


def test_full(new_world: Callable[..., Any]) -> None:
    world = new_world(units=2)
    world.room = 2
    world.settle().edit(images={"engine": "mine:2"})
    world.settle(check=one_by_one(world, 2))
    assert world.condition("Progressing")["reason"] == "NoRoomForSurge"
    assert "ReplaceOne" in world.condition("Progressing")["message"]
    world.edit(rollout={"whenFull": "ReplaceOne"})
    world.settle(check=one_by_one(world, 1))
    assert world.condition("Progressing")["reason"] == "UpToDate"
    assert world.condition("Placed")["status"] == "True"


def test_paused_and_undone(new_world: Callable[..., Any]) -> None:
    world = new_world(units=2).settle()
    before = world.units()
    world.edit(images={"engine": "mine:2"}, rollout={"paused": True}).settle()
    assert world.condition("Progressing")["reason"] == "Paused"
    assert world.units() == before
    uids = {p.uid for p in world.pods.values()}
    world.edit(images={}, rollout={}).settle()
    assert world.units() == before
    assert {p.uid for p in world.pods.values()} == uids


def test_a_stuck_rollout_is_told_and_an_edit_goes_past_it(new_world: Callable[..., Any]) -> None:
    world = new_world(units=2, rollout={"progressDeadline": "10s"}).settle()
    first = world.status["revision"]["current"]
    world.broken = lambda pod: pod.unit != "" and pod.revision != first
    world.edit(images={"engine": "broken:1"}).settle(check=one_by_one(world, 2))
    assert world.decide().again_seconds is None or world.decide().again_seconds > 0
    world.now += 11
    world.settle(check=one_by_one(world, 2))
    progressing = world.condition("Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "ProgressDeadlineExceeded")
    world.broken = lambda pod: False
    world.edit(images={"engine": "good:1"}).settle(check=one_by_one(world, 2))
    assert world.condition("Progressing")["reason"] == "UpToDate"
    assert len(world.units()) == 2


@pytest.mark.parametrize(
    "edit", [{"gateway": {"replicas": 3}}, {"units": 3}, {"disruption": {"minAvailableUnits": 0}}]
)
def test_changes_that_replace_no_engine(new_world: Callable[..., Any], edit: Any) -> None:
    world = new_world(units=2).settle()
    uids = {p.uid for p in world.pods.values() if p.unit}
    world.edit(**edit).settle(check=one_by_one(world, 2))
    assert uids <= {p.uid for p in world.pods.values()}
    assert len(world.named("ControllerRevision")) <= 2


def test_history(new_world: Callable[..., Any]) -> None:
    world = new_world().settle()
    for number in range(14):
        world.edit(images={"engine": f"mine:{number}"}).settle()
    assert len(world.named("ControllerRevision")) == 11


def test_history_of_revisions_that_share_a_units_name(new_world: Callable[..., Any]) -> None:
    world = new_world().settle()
    for number in range(14):
        world.edit(gateway={"maxWaitingRequests": 100 + number}).settle()
    assert len(world.named("ControllerRevision")) == 11


def test_paused_units_keep_their_instances(new_world: Callable[..., Any]) -> None:
    two = {"instancesPerUnit": 2}
    world = new_world(units=2, decode=two).settle()
    before = set(world.named("StatefulSet"))
    uids = {p.uid for p in world.pods.values() if p.unit}
    for number in range(14):  # More than are kept of what nobody has.
        shape = {"decode": {"instancesPerUnit": 1 + 2 * (number % 2)}}
        gateway = {"maxWaitingRequests": 100 + number}
        world.edit(gateway=gateway, rollout={"paused": True}, **shape).settle()
        assert set(world.named("StatefulSet")) == before
        assert world.condition("Progressing")["reason"] == "Paused"
        assert world.condition("Degraded")["status"] == "False"
        assert world.condition("DecodeReady")["status"] == "True"
        assert {one["name"]: one["desired"] for one in world.status["roles"]}["decode"] == 4
    assert {p.uid for p in world.pods.values() if p.unit} == uids
    assert len(world.named("ControllerRevision")) == 12, "one more is in use"

    del world.objects[Ref("apps/v1", "StatefulSet", "tiny-u0-decode-1")]
    world.settle()
    assert set(world.named("StatefulSet")) == before, "what is lost is made again"
    world.edit(units=3).settle()
    new = {"tiny-u2-prefill-0", "tiny-u2-decode-0", "tiny-u2-decode-1"}
    assert set(world.named("StatefulSet")) == before | new, "a new unit is like the others"

    world.edit(rollout={}).settle()
    more = {f"tiny-u{unit}-decode-2" for unit in range(3)}
    assert set(world.named("StatefulSet")) == before | new | more
    assert world.condition("Progressing")["reason"] == "UpToDate"

    other = {"images": {"engine": "mine:2"}, "decode": {"instancesPerUnit": 4}}
    world.edit(rollout={"paused": True}, **other).settle()
    assert world.condition("DecodeReady")["status"] == "True", "of what units have"
    assert {one["name"]: one["desired"] for one in world.status["roles"]}["decode"] == 9


def test_numbers_that_were_taken_back_do_not_come_to_former_units(
    new_world: Callable[..., Any],
) -> None:
    world = new_world().settle()
    world.edit(decode={"instancesPerUnit": 2}).settle().edit(decode={}).settle()
    before = set(world.named("StatefulSet"))
    world.edit(images={"engine": "mine:2"}, rollout={"paused": True}).settle()
    assert set(world.named("StatefulSet")) == before
