"""What Volcano's Queues offer, as the operator's watches show it."""

from typing import Any

from distserve.operator.flavors import VolcanoQueue
from distserve.operator.kinds import DEPLOYMENTS, OFFERED, OPTIONAL, WATCHED, watched
from distserve.operator.model import Key
from distserve.operator.store import Store

Object = dict[str, Any]
QUEUES = OFFERED[-1]
KEY = Key("ns", "opt")


def seen(version: int, capability: Object | None = None, **status: Any) -> Object:
    metadata = {"name": "team-a", "uid": "q", "resourceVersion": str(version)}
    spec = {"capability": capability} if capability else {}
    found = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": metadata}
    return found | {"spec": spec, "status": status}


def test_a_queue_is_whether_it_is_open_and_what_it_may_have() -> None:
    known = Store()
    metadata = {"namespace": "ns", "name": "opt", "uid": "d", "resourceVersion": "1"}
    known.put(DEPLOYMENTS, {"kind": "DistServeDeployment", "metadata": metadata, "spec": {}})
    assert known.put(QUEUES, seen(1)) == {KEY}, "somebody may wait for it"
    assert known.features_of("ns").volcano_queues == {"team-a": VolcanoQueue()}
    gpus = {"nvidia.com/gpu": 8, "cpu": "500m"}
    assert known.put(QUEUES, seen(2, gpus, state="Open")) == {KEY}
    expected = VolcanoQueue("Open", {"nvidia.com/gpu": 8, "cpu": 500})
    before = known.features_of("ns").volcano_queues
    assert before == {"team-a": expected}
    busy = seen(3, gpus, state="Open", allocated={"nvidia.com/gpu": "8"}, running=1)
    assert known.put(QUEUES, busy) == set(), "pods come and go: not all deployments look for that"
    assert known.put(QUEUES, seen(4, gpus, state="Closed")) == {KEY}
    assert known.drop(QUEUES, ("", "team-a"), "q") == set()
    assert known.features_of("ns").volcano_queues == {} and before, "what was handed out stays"


def test_a_queue_is_known_whatever_its_capability_says() -> None:
    """API servers keep quantities of foreign kinds as they were written."""
    known = Store()
    known.put(QUEUES, seen(1, {"nvidia.com/gpu": "1e3.5"}, state="Open"))
    assert known.features_of("ns").volcano_queues == {"team-a": VolcanoQueue("Open")}


def test_without_it_none_of_its_kinds_is_looked_at() -> None:
    left_out = set(WATCHED) - set(
        watched(kueue=True, volcano=False, gang_scheduling=True, kai=True)
    )
    assert {kind.kind for kind in left_out} == {"PodGroup", "Queue"}
    assert left_out <= set(OPTIONAL), "a cluster without Volcano has none of them"
    assert watched(kueue=True, volcano=True, gang_scheduling=True, kai=True) == WATCHED
