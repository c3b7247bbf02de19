"""The operator ends before its k-th write, for every k: what follows is as if it had not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

EDITS: dict[str, dict[str, Any]] = {
    "create": {},
    "scale up": {"units": 3},
    "scale down": {"units": 1},
    "scale to zero": {"units": 0},
    "image": {"images": {"engine": "mine:2"}},
    "gateway": {
        "gateway": {"replicas": 3, "requestTimeout": "1m"},
        "networkPolicy": {"enabled": False},
    },
    "shape": {"decode": {"instancesPerUnit": 2}},
    "smaller shape": {"prefill": {}, "decode": {}},
}


def outcome(world: Any) -> tuple[set[tuple[str, str, str]], dict[str, set[str]], str]:
    return set(world.objects), world.units(), world.condition("Ready")["status"]


@pytest.mark.parametrize("name", EDITS)
def test_every_crash_point(new_world: Callable[..., Any], name: str) -> None:
    spec = {"units": 2, "prefill": {"instancesPerUnit": 2}} if name != "create" else {"units": 2}
    start = new_world(**spec)
    if name != "create":
        start.settle().edit(**EDITS[name])

    calm = copy.deepcopy(start)
    before = len(calm.writes)
    calm.settle()
    count = len(calm.writes) - before
    assert count > 0
    for k in range(count + 2):
        world = copy.deepcopy(start)
        world.fail_after = k
        world.settle()
        assert outcome(world) == outcome(calm), f"crash before write {k}"
        assert world.keys == 1
        assert world.decide().actions == ()


def test_what_a_late_watch_hides_is_changed_in_its_turn(new_world: Callable[..., Any]) -> None:
    """It shows a deployment without units, whose image changed meanwhile: both are there."""
    world = new_world(units=2, rollout={"maxSurgeUnits": 0, "maxUnavailableUnits": 1})
    nothing = world.observe()
    world.settle()
    world.edit(images={"engine": "mine:2"})
    world.late = nothing
    world.reconcile()
    world.late = None
    world.reconcile()
    assert len(world.serving()) == 1


class Life(RuleBasedStateMachine):
    """Edits, crashes, dying pods and missing room in any order."""

    @initialize(units=st.integers(0, 3), surge=st.integers(0, 1))
    def begin(self, units: int, surge: int) -> None:
        self.rollout = {"maxSurgeUnits": surge, "maxUnavailableUnits": 1 - surge}
        self.world = self.make()(units=units, rollout=self.rollout)
        self.seen: Any = None

    @staticmethod
    def make() -> Callable[..., Any]:
        raise NotImplementedError

    @rule(units=st.integers(0, 3))
    def scale(self, units: int) -> None:
        self.world.edit(units=units)

    @rule(image=st.sampled_from(["a:1", "a:2", "a:3"]))
    def change_image(self, image: str) -> None:
        self.world.edit(images={"engine": image})

    @rule(count=st.integers(1, 2))
    def change_shape(self, count: int) -> None:
        self.world.edit(decode={"instancesPerUnit": count})

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.world.edit(rollout={**self.rollout, "paused": paused})

    @rule(room=st.integers(0, 5))
    def change_room(self, room: int) -> None:
        self.world.room = room

    @rule()
    def reconcile(self) -> None:
        """It takes down no more than it may."""
        before = self.world.serving()
        self.world.reconcile()
        after = self.world.serving()
        units = self.world.document["spec"].get("units", 1)
        taken = [unit for unit in before - after if int(unit[1:]) < units]
        assert not taken or len(after) >= units - self.rollout["maxUnavailableUnits"]

    @rule()
    def look(self) -> None:
        self.seen = self.world.observe()

    @precondition(lambda self: self.seen is not None)
    @rule()
    def reconcile_by_old_news(self) -> None:
        self.world.late = self.seen
        self.world.reconcile()
        self.world.late = None

    @rule(k=st.integers(0, 12))
    def crash(self, k: int) -> None:
        self.world.fail_after = k
        self.world.reconcile_or_crash()
        self.world.fail_after = None

    @rule()
    def step(self) -> None:
        self.world.step()

    @precondition(lambda self: self.world.pods)
    @rule(data=st.data())
    def kill_pod(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.pods)))
        del self.world.pods[name]

    @precondition(lambda self: self.world.named("StatefulSet"))
    @rule(data=st.data())
    def delete_child(self, data: st.DataObject) -> None:
        refs = sorted(ref for ref in self.world.objects if ref.kind != "Secret")
        del self.world.objects[data.draw(st.sampled_from(refs))]

    @invariant()
    def a_unit_is_of_one_revision(self) -> None:
        for unit in {pod.unit for pod in self.world.pods.values()} - {""}:
            ready = {p.revision for p in self.world.pods.values() if p.unit == unit and p.ready}
            assert len(ready) <= 1, f"{unit} mixes {ready}"

    @rule()
    def it_converges(self) -> None:
        world = self.world
        world.settle()
        spec = world.document["spec"]
        if world.room < 6 or spec["rollout"].get("paused"):
            return
        assert set(world.units()) == {f"u{n}" for n in range(spec.get("units", 1))}
        assert all(len(revisions) == 1 for revisions in world.units().values())
        assert len({r for revisions in world.units().values() for r in revisions}) <= 1
        assert world.keys == 1
        assert {p.unit for p in world.pods.values()} - {""} == set(world.units())

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.room = 100
            self.world.edit(rollout=self.rollout)
            self.it_converges()


def test_any_life_converges(new_world: Callable[..., Any]) -> None:
    class Here(Life):
        make = staticmethod(lambda: new_world)

    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
