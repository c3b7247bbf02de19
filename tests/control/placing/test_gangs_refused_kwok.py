"""Gang scheduling on a cluster that has none."""

from collections.abc import Callable
from typing import Any

import pytest
from tools.cluster.conditions import conditions


@pytest.fixture
def operator(crd: Any, start_distserve: Callable[..., Any]) -> Any:
    found = start_distserve("--engine-check=off", "--gang-scheduling=on")
    found.wait_until_ready()
    found.wait_until("leads", lambda: found.leads)
    return found


def test_what_the_cluster_lacks_is_said(fabric: Any) -> None:
    found = fabric.deployment("opt", fabric.Shape(1, 1, 1), scheduler="GangScheduling")

    def refused() -> bool:
        live = fabric.cluster.get("dsd", "opt", fabric.namespace)
        said = conditions(live).get("Accepted", {})
        return (
            said.get("status") == "False"
            and said["reason"] == "NotSupportedByCluster"
            and "does not serve scheduling.k8s.io/v1alpha2/PodGroup" in said["message"]
        )

    with fabric.watched() as history:
        fabric.apply(found)
        fabric.wait_until("it is refused", refused)
        assert not history.owners(), "an API server that lacks the field would drop it"
