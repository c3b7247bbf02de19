"""A unit as placement is asked for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from distserve.operator.model import BetterQuestion, Features, PlacementQuestion
from distserve.resources.instances import stateful_set

Make = Callable[..., Any]


def request(world: Any) -> Any:
    world.room = 0
    world.reconcile()
    (question,) = [q for q in world.questions if isinstance(q, PlacementQuestion)]
    return question.units[0]


def test_what_its_pods_ask_for(new_world: Make) -> None:
    pod = {
        "spec": {
            "nodeSelector": {"pool": "a"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "overhead": {"memory": "1Gi"},
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}
                        ]
                    }
                }
            },
        }
    }
    unit = request(new_world(decode={"instancesPerUnit": 2, "podTemplate": pod}))
    assert [one.name for one in unit.instances] == [
        "tiny-u0-prefill-0", "tiny-u0-decode-0", "tiny-u0-decode-1",
    ]  # fmt: skip
    prefill, decode, _ = unit.instances
    # The engine's CPU and the sidecar's tenth of one, in thousandths.
    assert prefill.amounts["cpu"] == 1100
    assert decode.amounts["memory"] - prefill.amounts["memory"] == 1 << 30
    assert decode.node_selector == {"pool": "a"}
    assert {"key": "gpu", "operator": "Exists"} in decode.tolerations
    assert decode.node_affinity_terms[0]["matchExpressions"][0]["key"] == "zone"


def test_where_it_wants_to_be(new_world: Make) -> None:
    topology = {
        "preset": "NVIDIA", "packWithin": "nvlink", "enforcement": "Preferred", "relaxAfter": "1m",
    }  # fmt: skip
    unit = request(new_world(topology=topology))
    assert [level.name for level in unit.levels] == ["nvlink", "zone"]
    assert (unit.pack_within, unit.enforcement, unit.relax_after_seconds) == (
        "nvlink", "Preferred", 60,
    )  # fmt: skip


def test_how_urgent_it_is_and_how_patient(new_world: Make) -> None:
    named = {"podTemplate": {"spec": {"priorityClassName": "urgent"}}}
    world = new_world(prefill=named, decode=named, topology={"reserveAfter": "90s"})
    world.features = Features(priorities={"": 3, "urgent": 1000})
    unit = request(world)
    assert (unit.priority, unit.reserve_after_seconds) == (1000, 90)
    half = new_world(prefill=named)
    half.features = world.features
    unit = request(half)
    assert unit.priority == 3, "a unit is as urgent as the least urgent of its pods"
    assert unit.reserve_after_seconds == 600, "10m if nothing is said"
    gone = new_world(prefill=named, decode=named)
    assert request(gone).priority == 0, "its class is not there"


def test_it_waits_since_it_was_first_said(new_world: Make) -> None:
    world = new_world()
    began = request(world).waiting_since
    world.now += 100
    assert request(world).waiting_since == began


def test_who_does_not_wait_any_more_says_so(new_world: Make) -> None:
    world = new_world(units=2)
    world.room = 1
    world.settle().edit(units=1)
    world.decide()
    assert PlacementQuestion(()) in world.questions
    world.edit(unit=3)
    world.decide()
    assert PlacementQuestion(()) in world.questions, "nor does one that is refused"
    assert BetterQuestion(None) in world.questions, "and no better place is kept for it"


def test_units_that_are_alike_are_rendered_once(
    new_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands may wait, and whoever waits is asked for in each decision."""
    made = []

    def counted(deployment: Any, instance: Any, *rest: Any) -> Any:
        made.append(instance.name)
        return stateful_set(deployment, instance, *rest)

    monkeypatch.setattr("distserve.operator.requests.stateful_set", counted)
    world = new_world(units=30, decode={"instancesPerUnit": 2})
    first = request(world)
    (question,) = [q for q in world.questions if isinstance(q, PlacementQuestion)]
    assert set(made) == {"tiny-u0-prefill-0", "tiny-u0-decode-0", "tiny-u0-decode-1"}
    last = question.units[-1]
    assert [one.name for one in last.instances] == [
        "tiny-u29-prefill-0", "tiny-u29-decode-0", "tiny-u29-decode-1",
    ]  # fmt: skip
    assert last.id == first.id._replace(unit="u29")
    assert [one.requests for one in last.instances] == [one.requests for one in first.instances]
    assert replace(last, id=first.id, instances=first.instances) == first
    assert last.total == first.total


@pytest.mark.parametrize(
    ("units", "decodes", "taken"), [(64, 63, True), (64, 64, False), (2048, 1, True)]
)
def test_all_units_together_have_a_bounded_number_of_instances(
    new_world: Make, units: int, decodes: int, taken: bool
) -> None:
    """Each is looked at in each decision, which others wait for."""
    world = new_world(units=units, decode={"instancesPerUnit": decodes})
    world.room = 0
    world.reconcile()
    accepted = world.condition("Accepted")
    assert accepted["status"] == str(taken)
    if not taken:
        assert accepted["reason"] == "Invalid"
        assert "more than 4096 instances: lower units or instancesPer" in accepted["message"]
        assert not [q for q in world.questions if isinstance(q, PlacementQuestion) and q.units]
