"""Instances of more ranks than a node has accelerators: several pods, all alike."""

from collections.abc import Callable
from typing import Any

Object = dict[str, Any]
Make = Callable[..., list[Object]]

ONE = {
    "accelerator": {"type": "GPU"},
    "decode": {"parallelism": {"tensor": 2, "pipeline": 2}},
}
SEVERAL = {
    "accelerator": {"type": "GPU", "perPod": 4},
    "decode": {"parallelism": {"tensor": 4, "pipeline": 3}},
}


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [o for o in objects if o["kind"] == kind]


def test_an_instance_of_more_ranks_than_a_node_has_several_pods(make: Make) -> None:
    found = make(**SEVERAL)
    sets = {o["metadata"]["name"]: o["spec"] for o in of_kind(found, "StatefulSet")}
    prefill = next(spec for name, spec in sets.items() if "prefill" in name)
    decode = next(spec for name, spec in sets.items() if "decode" in name)
    assert (prefill["replicas"], decode["replicas"]) == (1, 3)
    assert gpus(prefill) == "1"
    assert gpus(decode) == "4"
    arguments = " ".join(engine(decode)["args"])
    assert "--tensor 4 --pipeline 3 --pods 3 --pod-index $(POD_INDEX)" in arguments
    assert {"POD_INDEX", "POD_INSTANCE"} <= {one["name"] for one in engine(decode)["env"]}
    assert "--pods" not in engine(prefill)["args"]


def test_who_never_has_several_pods_renders_as_before(make: Make) -> None:
    sets = of_kind(make(**ONE), "StatefulSet")
    assert {one["spec"]["replicas"] for one in sets} == {1}
    assert {gpus(one["spec"]) for one in sets} == {"1", "4"}


def engine(spec: Object) -> Object:
    containers: list[Object] = spec["template"]["spec"]["containers"]
    return next(one for one in containers if one["name"] == "engine")


def gpus(spec: Object) -> str:
    return str(engine(spec)["resources"]["limits"]["nvidia.com/gpu"])
