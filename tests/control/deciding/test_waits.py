"""How long units wait until they are whole, from what is decided while time goes by."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from distserve.operator.model import Key
from distserve.operator.waits import Waits

Make = Callable[..., Any]
KEY = Key("llm", "tiny")
OURS = ("llm/tiny",)


class Watched:
    """A world, and what its operator tells of its units' waits."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.told: list[float] = []
        self.waits = Waits(self.told.append, lambda: world.now)

    def look(self, seconds: int = 1) -> dict[tuple[str, ...], float]:
        """Reconciles once a second; returns how many units wait in the end."""
        for _ in range(seconds):
            decision = self.world.reconcile()
            self.waits.follow(KEY, decision)
            self.world.step()
        return dict(self.waits.counts())


@pytest.fixture
def watch(new_world: Make) -> Callable[..., Watched]:
    return lambda **spec: Watched(new_world(**spec))


def test_a_unit_waits_from_when_it_is_wanted_until_all_its_pods_are_ready(watch: Make) -> None:
    watched = watch(units=2)
    watched.world.room = 1
    assert watched.look(30) == {OURS: 1}
    (first,) = watched.told
    assert 0 < first < 10
    assert watched.waits.longest() == {OURS: 30.0}
    watched.world.room = 2
    assert watched.look(10) == {} == watched.waits.longest()
    _, second = watched.told
    assert 30 <= second < 40


def test_a_lost_pod_makes_its_unit_wait_again(watch: Make) -> None:
    watched = watch()
    watched.look(10)
    assert len(watched.told) == 1
    name, pod = next((n, p) for n, p in watched.world.pods.items() if p.unit)
    watched.world.pods[name] = replace(pod, ready=False)
    watched.world.broken = lambda one: one.name == name
    assert watched.look(20) == {OURS: 1}
    watched.world.broken = lambda one: False
    assert watched.look(10) == {}
    assert 20 <= watched.told[1] < 25


def test_what_is_not_wanted_any_more_has_not_waited(watch: Make) -> None:
    watched = watch(units=2)
    watched.world.room = 1
    watched.look(30)
    watched.world.edit(units=1)
    assert watched.look(10) == {}
    assert len(watched.told) == 1, "of the unit that had room"


def test_a_refused_edit_ends_no_wait(watch: Make) -> None:
    """Nothing is made by it: what was lacking lacks on."""
    watched = watch(units=2)
    watched.world.room = 1
    watched.look(30)
    watched.world.edit(model={"id": "tiny"})
    assert watched.look(10) == {OURS: 1}
    assert watched.world.condition("Accepted")["status"] == "False"
    assert watched.waits.longest() == {OURS: 40.0}


@pytest.mark.parametrize("words", ["", "no"], ids=["by the operator", "by the API server"])
def test_a_wait_ends_with_ready_pods_also_while_an_edit_is_refused(watch: Make, words: str) -> None:
    """What was made before goes on to start."""
    watched = watch()
    watched.world.broken = lambda one: one.unit != ""
    assert watched.look(20) == {OURS: 1}
    watched.world.refusal = words
    watched.world.edit(**({"images": {"engine": "mine:2"}} if words else {"unit": 2}))
    assert watched.look(10) == {OURS: 1}
    assert watched.world.condition("Accepted")["status"] == "False"
    assert watched.waits.longest() == {OURS: 30.0}
    watched.world.broken = lambda one: False
    assert watched.look(10) == {} == watched.waits.longest()
    (waited,) = watched.told
    assert 30 <= waited < 35


def test_a_pod_that_is_lost_while_an_edit_is_refused_makes_its_unit_wait(watch: Make) -> None:
    watched = watch()
    watched.look(10)
    watched.world.edit(unit=2)
    assert watched.look(10) == {}
    pods = watched.world.pods.items()
    watched.world.broken = lambda one: one.unit != ""
    watched.world.pods = {name: replace(pod, ready=not pod.unit) for name, pod in pods}
    assert watched.look(20) == {OURS: 1}
    watched.world.broken = lambda one: False
    assert watched.look(10) == {}
    assert 20 <= watched.told[1] < 25


def test_each_unit_of_a_rollout_waits(watch: Make) -> None:
    watched = watch(units=2)
    watched.look(10)
    before = len(watched.told)
    watched.world.edit(images={"engine": "mine:2"})
    assert watched.look(60) == {}
    assert len(watched.told) - before == 3, "the extra one and the two"


def test_a_deployment_that_goes_takes_its_waits_along() -> None:
    waits = Waits(lambda seconds: None, lambda: 0.0)
    waits.see(KEY, {"u0": False, "u1": True})
    assert waits.counts() == {OURS: 1}
    waits.release(KEY)
    assert waits.counts() == {}
