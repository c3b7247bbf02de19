"""Two replicas on an API server of their own: one writes, the other follows, and both outlive the
API server's absence. With the lease times that are the default."""

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.audit import Audit
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.control_plane import ExtraFlags
from tools.cluster.errors import CommandFailed
from tools.cluster.profiles import Profile

USERS = ("first", "second")
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
AWAY_SECONDS = 30.0


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    return Audit(tmp_path, USERS)


@pytest.fixture
def crd(start_cluster: Callable[..., Cluster], audit: Audit) -> Cluster:
    """Instead of the session's: one whose API server writes down who called, and may be stopped."""
    cluster = start_cluster(Profile.CONTROL_PLANE, extra=ExtraFlags(api_server=audit.flags))
    cluster.apply(CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml")
    cluster.wait_for("the CRD", lambda: "dsd" in cluster.kubectl("api-resources", "--output=wide"))
    cluster.nodes(1)
    return cluster


@pytest.fixture
def replicas(crd: Cluster, audit: Audit, start_distserve: Callable[..., Any]) -> list[Any]:
    """The first of them leads; each calls the API server by a name of its own."""
    found = []
    for user in USERS:
        found.append(start_distserve(f"--kubeconfig={audit.kubeconfig(crd, user)}"))
        found[0].wait_until("leads", lambda: found[0].leads)
    found[1].wait_until_ready()
    return found


def writes(audit: Audit, user: str) -> Counter[str]:
    """Without those of the lease, for which replicas compete."""
    return Counter(
        {
            what: count
            for what, count in audit.calls(user).items()
            if what.split()[0] in WRITES and "lease" not in what
        }
    )


def settled(crd: Cluster, audit: Audit, user: str) -> Counter[str]:
    """The writes of one who is dead: what was under way is logged a moment later."""
    seen = [writes(audit, user)]

    def unchanged() -> bool:
        time.sleep(0.5)
        seen.append(writes(audit, user))
        return seen[-1] == seen[-2]

    crd.wait_for(f"the log of what {user} did last", unchanged, 20)
    return seen[-1]


def sets(cluster: Cluster, namespace: str) -> dict[str, str]:
    found = cluster.get("statefulsets", namespace=namespace)["items"]
    return {one["metadata"]["name"]: one["metadata"]["uid"] for one in found}


def budget(cluster: Cluster, namespace: str) -> Any:
    """What evictions of the first unit may take: follows spec.disruption.minAvailableUnits."""
    return cluster.get("pdb", "opt-u0", namespace)["spec"]["maxUnavailable"]


def test_one_writes_and_the_other_follows_in_time(
    crd: Cluster,
    namespace: str,
    replicas: list[Any],
    deployment: Any,
    audit: Audit,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = replicas
    crd.apply(deployment(), namespace)
    crd.wait_for("all is made", lambda: len(sets(crd, namespace)) == 2)
    assert writes(audit, "first")["patch statefulsets"] >= 2
    assert writes(audit, "second") == Counter()

    first.end(signal.SIGKILL)
    killed = time.monotonic()
    before = settled(crd, audit, "first")
    crd.apply(deployment(disruption={"minAvailableUnits": 0}), namespace)
    second.wait_until("the edit is followed", lambda: budget(crd, namespace) == "100%", 45.0)
    took = time.monotonic() - killed
    with capsys.disabled():
        print(f"\nkilled leader -> the other replica has written: {took:.1f} s (aim: 15)")
    assert writes(audit, "second")["patch poddisruptionbudgets"] == 1
    assert writes(audit, "first") == before


@pytest.mark.soak
def test_the_api_server_is_away_for_half_a_minute(
    crd: Cluster,
    namespace: str,
    replicas: list[Any],
    deployment: Any,
    start_distserve: Callable[..., Any],
    audit: Audit,
) -> None:
    """The holder of the lease ends, since it cannot renew it, and the kubelet starts it again: as
    the test does here. What happened meanwhile is not missed."""
    first, second = replicas
    crd.apply(deployment(), namespace)
    crd.wait_for("all is made", lambda: len(sets(crd, namespace)) == 2)
    before = sets(crd, namespace)

    crd.processes["kube-apiserver"].stop()
    # The outage is what is tested.
    time.sleep(AWAY_SECONDS)
    assert first.process.poll() == 1 and "lease was not renewed" in first.tail()
    assert second.process.poll() is None, second.tail()
    again = start_distserve(f"--kubeconfig={audit.kubeconfig(crd, 'first')}")
    crd.processes["kube-apiserver"].start()

    def answers() -> bool:
        with contextlib.suppress(CommandFailed):
            return crd.kubectl("get", "--raw=/readyz") == "ok"
        return False

    crd.wait_for("the API server", answers)
    crd.apply(deployment(disruption={"minAvailableUnits": 0}), namespace)
    second.wait_until("the edit is followed", lambda: budget(crd, namespace) == "100%", 90.0)
    again.wait_until_ready()
    assert sets(crd, namespace) == before
    assert [one.leads for one in (second, again)].count(True) == 1
