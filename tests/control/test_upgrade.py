"""An operator with other builders takes over: what runs stays as it is."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.conditions import conditions

NEWER = str(Path(__file__).with_name("newer_operator.py"))
VARIABLE = "FROM_A_LATER_VERSION"
OWNER = "distserve.io/deployment"


@pytest.fixture(scope="module", autouse=True)
def nodes(control_plane: Cluster) -> Iterator[None]:
    names = control_plane.nodes(1, prefix="upgrade-test")
    yield
    control_plane.remove_nodes(names)


def test_an_upgrade_restarts_no_pod_until_it_is_asked_for(
    crd: Cluster, namespace: str, start_distserve: Callable[..., Any], deployment: Any
) -> None:
    def templates(name: str) -> dict[str, Any]:
        found = crd.get("sts,deploy", namespace=namespace, selector=f"{OWNER}={name}")["items"]
        return {one["metadata"]["name"]: one["spec"]["template"] for one in found}

    def pods(name: str) -> dict[str, str]:
        found = crd.get("pods", namespace=namespace, selector=f"{OWNER}={name}")["items"]
        return {one["metadata"]["name"]: one["metadata"]["uid"] for one in found}

    def ready(name: str) -> bool:
        """The latest spec's pods serve, and no others are there."""
        found = conditions(crd.get("dsd", name, namespace))
        said = {kind: one["status"] for kind, one in found.items()}
        return said.get("Ready") == "True" and said.get("Progressing") == "False"

    def changed(name: str) -> bool:
        return all(VARIABLE in str(template) for template in templates(name).values())

    operator = start_distserve()
    crd.apply(deployment("old"), namespace)
    operator.wait_until("ready", lambda: ready("old") and len(pods("old")) == 4)
    before = templates("old"), pods("old")
    assert len(before[0]) == 3 and not changed("old")
    assert operator.end(signal.SIGTERM) == 0

    newer = start_distserve(program=(NEWER,))
    crd.apply(deployment("new"), namespace)
    newer.wait_until("the new deployment is ready", lambda: ready("new"))
    assert len(templates("new")) == 3 and changed("new"), "what is made now is of the new form"
    # An edit that the pods do not depend on has the old one decided anew, too.
    crd.apply(deployment("old", disruption={"minAvailableUnits": 0}), namespace)
    newer.wait_until(
        "the edit is seen",
        lambda: crd.get("pdb", "old-u0", namespace)["spec"]["maxUnavailable"] == "100%",
    )
    assert (templates("old"), pods("old")) == before

    crd.kubectl("annotate", "dsd/old", f"-n{namespace}", "distserve.io/refresh=1")
    newer.wait_until("all are of the new form", lambda: changed("old") and ready("old"))
    newer.wait_until("new pods", lambda: not set(before[1].values()) & set(pods("old").values()))
    assert templates("old").keys() == before[0].keys()
