"""Another scheduler for pods that are there: the unit is wholly of the one or of the other."""

from collections.abc import Callable
from typing import Any

import pytest

from distserve.operator.flavors import KaiQueue, VolcanoQueue
from distserve.operator.model import Features

Make = Callable[..., Any]
GROUPS = {
    "KAI": "scheduling.run.ai/v2alpha2",
    "Volcano": "scheduling.volcano.sh/v1beta1",
    "GangScheduling": "scheduling.k8s.io/v1alpha2",
}
MEMBERSHIP = {"KAI": "pod-group-name", "Volcano": "scheduling.k8s.io/group-name"}
NAMES = {"KAI": "kai-scheduler", "Volcano": "volcano"}
ALL = Features(
    served=frozenset(f"{version}/PodGroup" for version in GROUPS.values()),
    kai_queues={"team-a": KaiQueue("")},
    volcano_queues={"default": VolcanoQueue("Open")},
)


def let_in(world: Any) -> None:
    """Each Queue of Volcano has quota for all."""
    for ref, one in world.objects.items():
        if ref.api_version == GROUPS["Volcano"]:
            one.setdefault("status", {}).setdefault("phase", "Inqueue")


def topology(scheduler: str | None) -> dict[str, Any]:
    return {"topology": {"scheduler": scheduler} if scheduler else {}}


def begun(new_world: Make, scheduler: str | None) -> Any:
    """A unit that serves, and is replaced in place."""
    rollout = {"maxSurgeUnits": 0, "maxUnavailableUnits": 1}
    world = new_world(**topology(scheduler), rollout=rollout)
    world.document["metadata"]["labels"] = {"kai.scheduler/queue": "team-a"}
    world.features = ALL
    return world.settle(check=let_in)


PAIRS = [
    (one, other) for one in (*GROUPS, None) for other in (*GROUPS, None) if one != other
]  # fmt: skip


@pytest.mark.parametrize(("former", "later"), PAIRS)
def test_wherever_it_crashes_the_unit_is_wholly_of_the_later_one(
    new_world: Make, former: str | None, later: str | None
) -> None:
    world = begun(new_world, former).edit(**topology(later))
    before = len(world.writes)
    world.settle(check=let_in)
    count = len(world.writes) - before
    assert count > 2
    for after in range(count):
        world = begun(new_world, former).edit(**topology(later))
        world.fail_after = after
        world.settle(check=let_in)
        there = {ref.api_version for ref in world.objects if ref.kind == "PodGroup"}
        assert there == ({GROUPS[later]} if later else set()), f"crash before write {after}"
        for one in world.named("StatefulSet").values():
            template = one["spec"]["template"]
            notes = template["metadata"].get("annotations", {})
            marks = {name for name, note in MEMBERSHIP.items() if note in notes}
            assert marks == {later} & MEMBERSHIP.keys(), f"crash before write {after}"
            assert template["spec"].get("schedulerName") == NAMES.get(later or "")
            assert ("schedulingGroup" in template["spec"]) == (later == "GangScheduling")
        assert world.ready_units() == 1
