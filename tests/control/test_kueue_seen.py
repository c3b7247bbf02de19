"""What Kueue offers, as the operator's watches show it."""

from typing import Any

from distserve.operator.flavors import Flavor
from distserve.operator.kinds import DEPLOYMENTS, OFFERED, OPTIONAL, WATCHED, watched
from distserve.operator.model import Key
from distserve.operator.store import Store

Object = dict[str, Any]
FLAVORS, CLASSES = OFFERED[:2]
KEY = Key("ns", "opt")


def seen(kind: str, version: int = 1, **fields: Any) -> Object:
    metadata = {"name": "ours", "uid": kind, "resourceVersion": str(version)}
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": metadata, **fields}


def store() -> Store:
    found = Store()
    metadata = {"namespace": "ns", "name": "opt", "uid": "d", "resourceVersion": "1"}
    found.put(DEPLOYMENTS, {"kind": "DistServeDeployment", "metadata": metadata, "spec": {}})
    return found


def test_a_flavor_is_what_its_nodes_are() -> None:
    known = store()
    tolerations = [{"key": "gpu", "operator": "Exists"}]
    spec = {"nodeLabels": {"pool": "ours"}, "tolerations": tolerations}
    assert known.put(FLAVORS, seen("ResourceFlavor", spec=spec)) == {KEY}, (
        "somebody may wait for it"
    )
    before = known.features_of("ns").flavors
    assert before == {"ours": Flavor({"pool": "ours"}, tuple(tolerations))}
    assert known.put(FLAVORS, seen("ResourceFlavor", 2, spec=spec)) == set(), "nothing is new"
    assert known.put(FLAVORS, seen("ResourceFlavor", 3)) == {KEY}
    assert known.features_of("ns").flavors == {"ours": Flavor()}
    assert known.drop(FLAVORS, ("", "ours"), "ResourceFlavor") == set()
    assert known.features_of("ns").flavors == {} and before, "what was handed out stays"


def test_priorities_in_its_queues() -> None:
    known = store()
    assert known.put(CLASSES, seen("WorkloadPriorityClass", value=7)) == {KEY}
    assert known.put(CLASSES, seen("WorkloadPriorityClass", 2, value=7)) == set()
    assert known.features_of("ns").queue_priorities == {"ours": 7}
    known.drop(CLASSES, ("", "ours"), "WorkloadPriorityClass")
    assert known.features_of("ns").queue_priorities == {}


def test_without_it_none_of_its_kinds_is_looked_at() -> None:
    left_out = set(WATCHED) - set(
        watched(kueue=False, volcano=True, gang_scheduling=True, kai=True)
    )
    assert {kind.kind for kind in left_out} == {
        "Workload",
        "ResourceFlavor",
        "WorkloadPriorityClass",
    }
    assert left_out <= set(OPTIONAL), "a cluster without Kueue has none of them"
    assert watched(kueue=True, volcano=True, gang_scheduling=True, kai=True) == WATCHED


def test_priority_classes_are_looked_at_without_pod_groups() -> None:
    """Both are of Kubernetes' group scheduling.k8s.io."""
    left_out = set(WATCHED) - set(
        watched(kueue=True, volcano=True, gang_scheduling=False, kai=True)
    )
    (only,) = left_out
    assert (only.api_version, only.kind) == ("scheduling.k8s.io/v1alpha2", "PodGroup")
    assert left_out <= set(OPTIONAL)
